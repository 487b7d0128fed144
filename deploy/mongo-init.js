// Run by mongo-init of docker-compose.yml, at every start: makes what is missing.
const admin = new Mongo("mongodb://mongo:27017/?directConnection=true").getDB("admin");
admin.auth("root", process.env.MONGO_ROOT_PASSWORD);

const NOT_YET_INITIALIZED = 94;
try {
  admin.adminCommand({ replSetGetStatus: 1 });
} catch (error) {
  if (error.code !== NOT_YET_INITIALIZED) throw error;
  admin.adminCommand({ replSetInitiate: { _id: "rs0", members: [{ _id: 0, host: "mongo:27017" }] } });
}
while (!admin.hello().isWritablePrimary) sleep(100);

const user = { pwd: process.env.MONGO_PASSWORD, roles: [{ role: "readWrite", db: "runtape" }] };
if (admin.getUser("runtape")) admin.updateUser("runtape", user);
else admin.createUser({ user: "runtape", ...user });
print("the replica set rs0 has a primary, and the user runtape its password");
