// Prints a line now and one later, from a timer.
console.log(`Hello from Node.js ${process.version}.`);
setTimeout(() => console.log("A timer fired after 300 ms."), 300);
