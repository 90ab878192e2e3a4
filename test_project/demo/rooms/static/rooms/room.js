// A room: what is said, who is here, who is typing.

import { connect } from "django_websocket";
import { avatar, element } from "../demo/ui.js";
import { explainEnd, pulse } from "../demo/site.js";

const TYPING = 5_000; // ms after the last key until one has stopped typing
const TOGETHER = 120_000; // ms within which messages of one person have one heading

const [room, log, people, count, typing, form, input] = ["room", "log", "people", "count", "typing", "form", "text"].map(
  (id) => document.getElementById(id),
);
const me = Number(room.dataset.me);
const socket = connect(room.dataset.url);

// --- what is said ------------------------------------------------------------------------------------------------------

const seen = new Set(); // keys of messages: one that was sent twice is shown once
const waiting = new Map(); // by key, messages of this page that have not come back from the server
let latest; // message that has come from the server, or undefined after a divider
let away = false; // whether the connection has been lost since the last message

/** Makes a message. A mention, such as @ben, stands out. */
function messageElement({ author, text, at }) {
  const date = new Date(at);
  const time = element("time", { dateTime: date.toISOString() }, date.toLocaleTimeString([], { timeStyle: "short" }));
  const name = author.id === me ? `${author.name} (you)` : author.name;
  const body = text.split(/(@\w+)/).map((part, odd) => (odd % 2 ? element("span", { className: "mention" }, part) : part));
  return element(
    "div",
    { className: "message" },
    avatar(author),
    element("div", {}, element("div", { className: "by" }, name, time), element("div", { className: "text" }, ...body)),
  );
}

/** Says whether a message can go without a heading of its own. */
function continues({ author, at }) {
  return latest?.author.id === author.id && new Date(at) - new Date(latest.at) < TOGETHER;
}

/** Puts something at the end, or before the messages that wait. */
function add(made) {
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  const next = waiting.values().next().value?.made ?? null;
  // What is in its place stays there, or a screen reader would read it again.
  if (!made.isConnected || made.nextElementSibling !== next) log.insertBefore(made, next);
  if (atEnd) log.scrollTop = log.scrollHeight;
}

new ResizeObserver(() => (log.scrollTop = log.scrollHeight)).observe(log);

function divide(text) {
  latest = undefined;
  add(element("p", { className: "divider" }, text));
}

socket.on("message", (data, { replayed }) => {
  const message = JSON.parse(data);
  if (message.key && seen.has(message.key)) return;
  seen.add(message.key);
  if (away && replayed) divide("While you were away");
  away = false;
  const made = waiting.get(message.key)?.made ?? messageElement(message);
  waiting.delete(message.key);
  made.classList.remove("waiting");
  made.classList.toggle("more", continues(message));
  latest = message;
  add(made);
  if (!replayed) pulse();
});
socket.on("reset", () => divide("Messages sent in the meantime are lost"));
socket.on("state", ({ name }) => {
  if (name === "waiting" || name === "offline") away = true;
  if (name === "open") {
    setTimeout(() => (log.ariaLive = "polite"), 1_000); // a screen reader need not read the history
    sendAgain();
  }
});
explainEnd(socket);

/** Sends what may have been lost with the last connection; what has only been kept is being sent for the first time. */
function sendAgain() {
  for (const each of waiting.values()) {
    if (each.sent) socket.send(each.data);
    each.sent = true;
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = input.value.trim();
  const key = crypto.randomUUID();
  const data = JSON.stringify({ text, key });
  const sent = socket.state.name === "open";
  if (!socket.send(data, { queue: true })) return; // too much waits already
  const message = { author: { id: me, name: room.dataset.name }, text, at: Date.now() };
  const made = messageElement(message);
  made.classList.add("waiting");
  made.classList.toggle("more", continues(message));
  log.append(made);
  log.scrollTop = log.scrollHeight;
  waiting.set(key, { data, sent, made });
  input.value = "";
  setTyping(false);
});

// --- who is here -------------------------------------------------------------------------------------------------------

socket.on("present", ({ members, count: number }) => {
  const sorted = members.toSorted((a, b) => a.name.localeCompare(b.name));
  people.replaceChildren(
    ...sorted.map((each) => element("li", {}, avatar(each), each.id === me ? `${each.name} (you)` : each.name)),
  );
  count.textContent = number;
  const names = sorted.filter((each) => each.typing && each.id !== me).map(({ name }) => name);
  typing.textContent = names.length ? `${names.join(" and ")} ${names.length > 1 ? "are" : "is"} typing…` : "";
});

let isTyping = false;
let timer;

function setTyping(now) {
  clearTimeout(timer);
  if (now) timer = setTimeout(setTyping, TYPING, false);
  if (now === isTyping) return;
  isTyping = now;
  socket.send(JSON.stringify({ typing: now })); // not kept for later
}

input.addEventListener("input", () => setTyping(input.value !== ""));
