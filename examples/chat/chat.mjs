// A terminal chat over hublog, with nothing but the stock SignalR client.
//
//   node examples/chat/chat.mjs --url http://127.0.0.1:8001/hubs/chat --user ann --group lobby
//
// There is no chat server behind this. hublog knows sessions, groups and calls; everything that makes it a chat, the
// methods `say`, `tell`, `joined` and `left`, is agreed between the clients, here in this file.
import readline from "node:readline";
import { parseArgs } from "node:util";
import { HttpTransportType, HubConnectionBuilder, HubConnectionState, LogLevel } from "@microsoft/signalr";

const HELP = `/join <group>      join a group, and talk there
/leave [<group>]   leave a group, or the one you talk in
/groups            the groups you are in
/who               who is in the group (asks the API: start with --api)
/msg <user> <text> tell one user, wherever they are connected
/quit              leave; so does the end of the input
anything else      say it to the group`;

const USAGE = `node chat.mjs [options]

  --url <url>         a gateway and a hub [http://127.0.0.1:8000/hubs/chat]
  --user <name>       who you are [your login]
  --group <group>     where you talk first [lobby]
  --api <url>         the API that /who asks, e.g. http://127.0.0.1:8100
  --skip-negotiation  open the WebSocket at once, one round trip less`;

const { values: options } = readOptions({
  options: {
    help: { type: "boolean", default: false },
    url: { type: "string", default: "http://127.0.0.1:8000/hubs/chat" },
    user: { type: "string", default: process.env.USER ?? "somebody" },
    group: { type: "string", default: "lobby" },
    api: { type: "string" },
    "skip-negotiation": { type: "boolean", default: false },
  },
});

if (options.help) {
  console.log(USAGE);
  process.exit();
}

function readOptions(known) {
  try {
    const read = parseArgs(known);
    if (!/^https?:/.test(read.values.url) || !URL.canParse(read.values.url)) throw new Error(`No URL of http: '${read.values.url}'`);
    return read;
  } catch (error) {
    console.error(`${error.message}\n\n${USAGE}`);
    process.exit(2);
  }
}

// --- the connection -------------------------------------------------------------------------------------------------

const accessToken = process.env.HUBLOG_TOKEN; // where hublog asks for one; arguments can be read by others
let me = options.user;
const url = new URL(options.url);
const hub = url.pathname.split("/").at(-1);
if (accessToken === undefined) {
  url.searchParams.set("user", me); // who we are; without tokens hublog believes us
  url.searchParams.set("meta", JSON.stringify({ client: "chat.mjs" })); // anything that the API shall show about us
}
url.searchParams.set("resumable", "1"); // our session shall survive our connection, and the node that it is on

const connection = new HubConnectionBuilder()
  .withUrl(url.href, {
    transport: HttpTransportType.WebSockets,
    skipNegotiation: options["skip-negotiation"],
    // Asked at each connection: a real client fetches a fresh token here. Who we are, and our metadata, stand in it.
    accessTokenFactory: accessToken === undefined ? undefined : () => accessToken,
  })
  // Never give up. The stock policy, `withAutomaticReconnect()` without arguments, stops after four attempts.
  .withAutomaticReconnect({
    nextRetryDelayInMilliseconds: ({ previousRetryCount: tries }) => Math.min(250 * 2 ** tries, 5_000) * (0.5 + Math.random()),
  })
  .configureLogging(LogLevel.None) // we say ourselves what happens
  .build();

// What it takes to go on after a loss: the newest token of our session, and the position of the last message we have.
let token, cursor;

// The latest position that we know of, from a message or an answer: what we are told of the hub shall not be older.
let seen;
const sequence = (position) => Number(position.split("-").at(-1));
const saw = (position) => {
  if (seen === undefined || sequence(position) > sequence(seen)) seen = position;
};

// What the others may call on us. On a resumable connection each message carries its position as one last argument.
// What they send must not steer our terminal, so control characters go.
const on = (target, said) =>
  connection.on(target, (...args) => {
    saw((cursor = args.pop()));
    show(said(...args).replace(/\p{Cc}/gu, "\u{fffd}"));
  });
on("say", (group, user, text) => `[${group}] ${user}: ${text}`);
on("tell", (user, text) => `${user} tells you: ${text}`);
on("joined", (group, user) => `[${group}] ${user} joined`);
on("left", (group, user) => `[${group}] ${user} left`);

connection.onreconnecting((error) => {
  show(`* connection lost (${error?.message ?? "no reason given"}), reconnecting`);
  // The stock client dials the same URL again; while it is reconnecting, that may be changed.
  const again = new URL(url);
  again.searchParams.set("resume", token);
  again.searchParams.set("cursor", cursor);
  connection.baseUrl = again.href;
});
connection.onreconnected(() => returned().catch((error) => show(`! ${error.message}`)));
connection.onclose((error) => {
  if (error === undefined) return; // we closed it ourselves
  show(`* the server closed the connection: ${error.message}`); // `<code>: <what happened>. <hint>`
  process.exit(1);
});

// --- what we do on it -----------------------------------------------------------------------------------------------

const groups = []; // where we are, the last is where we talk

// What changes something is answered with its position in the log.
const command = async (method, ...args) => saw((await connection.invoke(method, ...args)).position);

// The call that everything goes through: call the method `target` of the sessions that the selector picks.
const call = (selector, target, ...args) => command("hub.invoke", selector, target, args);

async function join(group) {
  if (!groups.includes(group)) {
    await command("hub.join", group);
    await call({ to: "groupExceptCaller", group }, "joined", group, me);
  }
  groups.splice(0, groups.length, ...groups.filter((name) => name !== group), group);
  show(`* you are in ${group}`);
}

// Who are we? On a resumable connection this also starts the delivery of a new session, and tells the token.
async function introduce() {
  const answer = await connection.invoke("hub.session");
  token = answer.resumeToken;
  me = answer.userId;
  cursor ??= answer.cursor; // until the first message
  return answer;
}

// Usually the session goes on: what was said meanwhile has come, or comes now. If it could not, it is a new one.
async function returned() {
  const { sessionId, resumed, resync, code, cursor: start } = await introduce();
  if (!resumed) {
    cursor = seen = start;
    if (groups.length > 0) await command("hub.join", groups); // a new session is in no group
  }
  const missed = resync === "lost" ? `, some messages are lost (${code ?? "too long ago"})` : "";
  show(`* ${resumed ? "resumed" : "reconnected as"} session ${sessionId}, in ${groups.join(", ") || "no group"}${missed}`);
}

async function leave(group) {
  if (!groups.includes(group)) return show(`* you are not in ${group ?? "any group"}`);
  await command("hub.leave", group);
  await call({ to: "group", group }, "left", group, me); // anybody may call a group, member or not
  groups.splice(groups.indexOf(group), 1);
  show(`* you left ${group}; you talk in ${groups.at(-1) ?? "no group"}`);
}

async function who(group) {
  if (options.api === undefined) return show("* start with --api http://127.0.0.1:8100 to ask who is there");
  if (group === undefined) return show("* join a group first");
  const members = new URL(`${options.api}/v1/hubs/${hub}/groups/${encodeURIComponent(group)}/members`);
  // The read models follow the log a moment behind: the answer waits until it covers what we have seen.
  if (seen !== undefined) members.searchParams.set("min_position", seen);
  const headers = accessToken === undefined ? {} : { Authorization: `Bearer ${accessToken}` };
  const answer = await (await fetch(members, { headers })).json();
  if (answer.code !== undefined) throw new Error(`${answer.code}: ${answer.detail}. ${answer.hint}`); // a problem document
  show(`* in ${group}: ${answer.items.map((member) => member.userId ?? member.sessionId).join(", ")}`);
}

async function obey(line) {
  const [command, argument, ...rest] = line.split(/\s+/);
  const here = groups.at(-1);
  if (command === "/join" && argument) await join(argument);
  else if (command === "/leave") await leave(argument ?? here);
  else if (command === "/groups") show(`* ${(await connection.invoke("hub.groups")).join(", ") || "none"}`);
  else if (command === "/who") await who(here);
  else if (command === "/msg" && rest.length > 0) await call({ to: "user", user: argument }, "tell", me, rest.join(" "));
  else if (command.startsWith("/")) show(HELP);
  else if (here === undefined) show("* join a group first: /join <group>");
  else await call({ to: "groupExceptCaller", group: here }, "say", here, me, line);
}

// --- the terminal ---------------------------------------------------------------------------------------------------

const isTerminal = process.stdin.isTTY && process.stdout.isTTY;
let input;

function show(text) {
  if (isTerminal) {
    // Out of the way of a line that is being typed, which is then put back.
    readline.cursorTo(process.stdout, 0);
    readline.clearLine(process.stdout, 0);
  }
  console.log(text);
  if (isTerminal) input?.prompt(true);
}

try {
  await connection.start();
} catch (error) {
  // A refused token is a problem document, which the stock client quotes whole.
  const problem = error.message.match(/\{"type".*\}/)?.[0];
  const { code, detail, hint } = problem ? JSON.parse(problem) : {};
  console.error(`cannot connect to ${options.url}: ${code ? `${code}: ${detail}. ${hint}` : error.message}`);
  process.exit(1);
}
const { sessionId } = await introduce();
show(`* connected as ${me}, session ${sessionId}; /help for help`);
await join(options.group);

input = readline.createInterface({ input: process.stdin, output: process.stdout, terminal: isTerminal });
if (isTerminal) input.prompt();
for await (const line of input) {
  if (line.trim() === "/quit") break;
  try {
    if (line.trim() !== "") await obey(line.trim());
  } catch (error) {
    show(`! ${error.message}`); // the connection goes on: an error is the answer to one call
  }
  if (isTerminal) input.prompt();
}
input.close();
if (connection.state === HubConnectionState.Connected) {
  for (const group of groups) await call({ to: "groupExceptCaller", group }, "left", group, me);
}
await connection.stop();
