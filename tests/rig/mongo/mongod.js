#!/usr/bin/node
// mongod WORDS: the engine by those words of MongoDB's own server that ContainedMongo says, until SIGTERM.
//
// It has no replica sets: as a server by itself it takes writes at once, and is never told to begin a set.
const { parseArgs } = require("node:util");
const { fail, serve } = require("./serve.js");

const options = {
  bind_ip_all: { type: "boolean", default: false },
  dbpath: { type: "string", default: "/data/db" },
  port: { type: "string", default: "27017" },
  replSet: { type: "string" },
};

function words() {
  try {
    return parseArgs({ options }).values;
  } catch (error) {
    console.error(`Error parsing command line: ${error.message}`);
    process.exit(2);
  }
}

async function main({ bind_ip_all, dbpath, port, replSet }) {
  if (replSet) console.error(`this engine has no replica sets: --replSet ${replSet} is not heeded`);
  await serve(dbpath, bind_ip_all ? "0.0.0.0" : "127.0.0.1", Number(port));
  console.error(`Waiting for connections at port ${port}`);
}

main(words()).catch(fail);
