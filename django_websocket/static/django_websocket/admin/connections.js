// The page of the admin that shows who is connected. What arrives is shown as text, whatever clients have made up.

const SPAN = 240; // seconds that the plots show
const LONGEST = 300; // characters; of a longer path, the beginning is known
const STATES = {
  connecting: "Connecting…",
  open: "Live",
  waiting: "The connection is lost, and is being made again…",
  offline: "This device is offline.",
  closed: "The connection has ended. Load the page again.",
  refused: "You may not see this, or have logged out.",
};

const found = (id) => document.getElementById(`websockets${id ? `-${id}` : ""}`);
const root = found("");
// The page names both modules: the storage of static files may have put a hash into their names, and left no other.
const { connect } = await import(root.dataset.client);
const { plot } = await import(root.dataset.plot);
const filters = found("filters");
const body = found("list").tBodies[0];
const one = found("one"); // the form that ends a single connection; null for those who may not
const rows = new Map(); // by the ids of connections
let samples = [];

const units = (value, steps) => {
  const [size, name] = steps.find(([step]) => value >= step) ?? steps.at(-1);
  const number = value / size;
  return `${number < 10 && size > 1 ? number.toFixed(1) : Math.round(number)} ${name}`;
};
const time = (seconds) => units(seconds, [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]);
const bytes = (count) => units(count, [[2 ** 20, "MiB"], [2 ** 10, "KiB"], [1, "B"]]);
const latency = (seconds) => (seconds === null ? "–" : `${Math.max(1, Math.round(seconds * 1000))} ms`);
const FIGURES = {
  connections: String,
  messages: (rate) => (rate < 10 ? rate.toFixed(1) : String(Math.round(rate))),
  latency: (seconds) => latency(seconds),
  outbox: bytes,
};

const SCALES = { latency: { least: 0.01 }, outbox: { least: 1024, unit: 1024 } };

// --- what the user wants to see ---------------------------------------------------------------------------------------

const wanted = () => Object.fromEntries([...new FormData(filters)].filter(([name]) => name !== "csrfmiddlewaretoken"));

function filterBy(name, value) {
  filters.elements[name].value = value;
  ask();
}

function ask() {
  const address = new URL(location);
  address.search = "";
  for (const [name, value] of Object.entries(wanted())) if (value) address.searchParams.set(name, value);
  history.replaceState(null, "", address);
  socket.send(JSON.stringify(wanted()));
}

// --- the list ---------------------------------------------------------------------------------------------------------

function cell(row, label, kind = "") {
  const made = row.insertCell();
  made.dataset.label = label;
  made.className = kind;
  return made;
}

function put(cell, text) {
  if (cell.textContent !== text) cell.textContent = text;
}

function button(kind, text, press) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = kind;
  made.textContent = text;
  made.addEventListener("click", press);
  return made;
}

function newRow(connection) {
  const row = document.createElement("tr");
  const user = cell(row, "User", "user");
  const name = connection.name || connection.user;
  const path = connection.path.length < LONGEST ? connection.path : `${connection.path}*`;
  // By the name if there is one: somebody may have chosen the primary key of another user as a name.
  if (name) user.append(button("link", name, () => filterBy("user", name)));
  else user.append("–");
  cell(row, "Path", "path").append(button("link", connection.path, () => filterBy("path", path)));
  const cells = { where: cell(row, "At", "where"), channels: cell(row, "Channels", "channels") };
  for (const [key, label] of [["age", "Age"], ["messages", "In / out"], ["outbox", "Outbox"], ["latency", "Latency"]]) {
    cells[key] = cell(row, label, "number");
  }
  cell(row, "Process", "quiet process").append(`${connection.host}:${connection.pid}`);
  if (one) {
    const end = button("end", "End…", () => {
      one.elements.id.value = connection.id;
      one.submit();
    });
    end.setAttribute("aria-label", `Disconnect ${name || "this client"} from ${connection.path}`);
    cell(row, "").append(end);
  }
  return { row, cells, channels: "" };
}

function show(connection) {
  const known = rows.get(connection.id) ?? newRow(connection);
  rows.set(connection.id, known);
  const { cells } = known;
  put(cells.where, connection.where || connection.view);
  cells.where.title = connection.where ? `${connection.view}, in ${connection.function}` : "";
  const names = connection.channels.join("\n");
  if (known.channels !== names) {
    known.channels = names;
    cells.channels.replaceChildren(
      ...connection.channels.flatMap((name) => [button("link", name, () => filterBy("channel", name)), " "]),
    );
    if (connection.more_channels) cells.channels.append(`+${connection.more_channels}`);
  }
  put(cells.age, time(connection.age));
  put(cells.messages, `${connection.received_messages} / ${connection.sent_messages}`);
  put(cells.outbox, bytes(connection.outbox));
  put(cells.latency, latency(connection.latency));
  return known.row;
}

function showAll({ connections, total, processes, silent }) {
  const shown = connections.map(show);
  const ids = new Set(connections.map(({ id }) => id));
  for (const id of rows.keys()) if (!ids.has(id)) rows.delete(id);
  if (shown.length !== body.rows.length || shown.some((row, index) => body.rows[index] !== row)) body.replaceChildren(...shown);
  const count = (number, one, many) => `${number} ${number === 1 ? one : many}`;
  const some = connections.length < total ? `The first ${connections.length} of ` : "";
  put(found("count"), `${some}${count(total, "WebSocket", "WebSockets")} in ${count(processes, "process", "processes")}`);
  return silent ? `${count(silent, "process did", "processes did")} not answer within a second. Their WebSockets are missing here.` : "";
}

// --- the plots --------------------------------------------------------------------------------------------------------

function draw(figures) {
  const now = performance.now() / 1000;
  samples.push({ at: now, figures });
  samples = samples.filter(({ at }) => now - at <= SPAN);
  for (const figure of root.querySelectorAll("figure")) {
    const { figure: name } = figure.dataset;
    const text = FIGURES[name];
    const points = samples.map((sample) => ({ age: now - sample.at, value: sample.figures[name] }));
    const top = plot(figure.querySelector("svg"), points, SPAN, SCALES[name]);
    put(figure.querySelector("output"), figures[name] === null ? "–" : text(figures[name]));
    put(figure.querySelector(".top"), `up to ${text(top)}`);
  }
}

// --- the connection ---------------------------------------------------------------------------------------------------

const socket = connect(root.dataset.address);

socket.on("state", ({ name }) => {
  found("state").dataset.state = name;
  put(found("state"), STATES[name] ?? name);
  if (name === "open") ask();
});

socket.on("message", (data) => {
  const message = JSON.parse(data);
  let { problem } = message;
  if (!problem) {
    draw(message.figures);
    problem = showAll(message);
  }
  put(found("problem"), problem);
  found("problem").hidden = !problem;
});

for (const input of filters.querySelectorAll("input:not([type=hidden])")) input.addEventListener("input", ask);
filters.addEventListener("reset", (event) => {
  event.preventDefault(); // which would bring back what the page began with
  for (const name of ["user", "path", "view", "channel", "id"]) filters.elements[name].value = "";
  ask();
});
