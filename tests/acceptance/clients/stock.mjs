// Stock SignalR clients on a string: commands come in as JSON lines, what happens goes out as JSON lines.
//
//   {"number": 1, "client": "ann", "do": "start", "url": "…", "skipNegotiation": false, "methods": ["say"],
//    "retryMs": [0, 500], "keepAliveMs": 15000, "tokens": ["…", "…"]}      the nth is what accessTokenFactory gives first
//   {"number": 2, "client": "ann", "do": "invoke", "target": "hub.join", "arguments": ["red"]}      -> waits for its answer
//   {"number": 3, "client": "ann", "do": "send", "target": "hub.join", "arguments": ["red"]}        -> does not
//   {"number": 4, "client": "ann", "do": "stop"}
//
// Each is answered by {"answer": number, "result": …} or {"answer": number, "error": "…"}, in between come
// {"client": "ann", "heard": "say", "arguments": […]} and {"client": "ann", "event": "reconnecting", "error": "…"}.
import { createRequire } from "node:module";
import readline from "node:readline";

// The client that the example installs: there is one copy of it.
const require = createRequire(new URL("../../../examples/chat/package.json", import.meta.url));
const { HttpTransportType, HubConnectionBuilder, LogLevel } = require("@microsoft/signalr");

const connections = new Map();
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

function build(client, { url, skipNegotiation, methods, retryMs, keepAliveMs, tokens }) {
  let asked = 0;
  const accessTokenFactory = tokens && (() => tokens[Math.min(asked++, tokens.length - 1)]);
  const builder = new HubConnectionBuilder()
    .withUrl(url, { transport: HttpTransportType.WebSockets, skipNegotiation, accessTokenFactory })
    .withKeepAliveInterval(keepAliveMs)
    .configureLogging(LogLevel.None);
  if (retryMs !== null) builder.withAutomaticReconnect(retryMs);
  const connection = builder.build();
  for (const method of methods) {
    connection.on(method, (...args) => say({ client, heard: method, arguments: args }));
  }
  const happened = (event) => (error) => say({ client, event, error: error instanceof Error ? error.message : null });
  connection.onreconnecting(happened("reconnecting"));
  connection.onreconnected(happened("reconnected"));
  connection.onclose(happened("closed"));
  return connection;
}

async function obey(command) {
  if (command.do === "start") connections.set(command.client, build(command.client, command));
  const connection = connections.get(command.client);
  if (command.do === "invoke") return connection.invoke(command.target, ...command.arguments);
  if (command.do === "send") return connection.send(command.target, ...command.arguments);
  return command.do === "start" ? connection.start() : connection.stop();
}

readline
  .createInterface({ input: process.stdin })
  .on("line", (line) => {
    const command = JSON.parse(line);
    obey(command).then(
      (result) => say({ answer: command.number, result: result ?? null }),
      (error) => say({ answer: command.number, error: error.message }),
    );
  })
  .on("close", () => process.exit(0)); // who held the string is gone
