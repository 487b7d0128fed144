const fs = require("fs");

const [which, ...rest] = process.argv.slice(2);
const cases = {
  stdin() {
    for (const line of fs.readFileSync(0, "utf8").trimEnd().split("\n")) console.log("got", line);
  },
  args() {
    for (const each of rest) console.log(`[${each}]`);
  },
  files() {
    process.stdout.write(fs.readFileSync("data/in.txt"));
  },
  text() {
    console.log("žluťoučký 雪 🎉");
  },
  exit() {
    process.exit(7);
  },
  stderr() {
    console.log("to stdout");
    console.error("to stderr");
  },
  uncaught() {
    throw new Error("boom");
  },
  sleep() {
    setTimeout(() => {}, 60_000);
  },
  hog() {
    const held = [];
    for (;;) held.push(new Array(100_000).fill(held.length));
  },
  flood() {
    const lines = [];
    for (let n = 0; n < 1_000_000; n++) lines.push(String(n).padStart(9, "0"));
    process.stdout.write(lines.join("\n") + "\n");
  },
};
cases[which]();
