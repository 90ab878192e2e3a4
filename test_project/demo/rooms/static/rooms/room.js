// A room: what is said, who is here, who is typing.

import { connect } from "django_websocket";
import { avatar, element } from "../demo/ui.js";
import { pulse } from "../demo/site.js";

const TYPING = 3_000; // ms after the last key until one has stopped typing
const TOGETHER = 120_000; // ms within which messages of one person have one heading

const [room, log, people, count, typing, form, input] = ["room", "log", "people", "count", "typing", "form", "text"].map(
  (id) => document.getElementById(id),
);
const me = Number(room.dataset.me);
const waiting = new Map(); // by key, messages of this page that have not come back from the server
const socket = connect(room.dataset.url);

// --- what is said ------------------------------------------------------------------------------------------------------

let latest; // { author, at } of the last message
let away = false; // whether the connection has been lost since the last message

/** Makes a message. A mention, such as @ben, stands out. */
function messageElement({ author, text, at }) {
  const date = new Date(at);
  const time = element("time", { dateTime: date.toISOString() }, date.toLocaleTimeString([], { timeStyle: "short" }));
  const body = text.split(/(@\w+)/).map((part, odd) => (odd % 2 ? element("span", { className: "mention" }, part) : part));
  const name = author.id === me ? `${author.name} (you)` : author.name;
  const made = element("div", { className: "message" }, avatar(author));
  made.append(element("div", {}, element("div", { className: "by" }, name, time), element("div", { className: "text" }, ...body)));
  made.classList.toggle("more", latest?.author.id === author.id && date - latest.at < TOGETHER);
  latest = { author, at: date };
  return made;
}

function add(made) {
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  log.append(made);
  if (atEnd) log.scrollTop = log.scrollHeight;
  return made;
}

new ResizeObserver(() => (log.scrollTop = log.scrollHeight)).observe(log);

function divide(text) {
  latest = undefined;
  add(element("p", { className: "divider" }, text));
}

socket.on("message", (data, { replayed }) => {
  const message = JSON.parse(data);
  waiting.get(message.key)?.remove();
  waiting.delete(message.key);
  if (away && replayed) divide("While you were away");
  away = false;
  add(messageElement(message));
  for (const each of waiting.values()) add(each); // stays at the end
  if (!replayed) pulse();
});
socket.on("reset", () => divide("What was said here meanwhile is lost"));
socket.on("state", ({ name, code }) => {
  if (name === "waiting" || name === "offline") away = true;
  if (name === "open") setTimeout(() => (log.ariaLive = "polite"), 1_000); // a screen reader need not read the history
  if (code === 4401) location.reload();
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = input.value.trim();
  const key = crypto.randomUUID();
  if (!socket.send(JSON.stringify({ text, key }), { queue: true })) return; // too much waits already
  if (socket.state.name !== "open") {
    const before = latest;
    const made = messageElement({ author: { id: me, name: room.dataset.name }, text, at: Date.now() });
    latest = before;
    made.classList.add("waiting");
    waiting.set(key, add(made));
  }
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
