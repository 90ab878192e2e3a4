import { show } from "./log.js";
import { paint, showPeople } from "./people.js";
import { connect } from "./socket.js";

const form = document.getElementById("form");
const { user, color, text } = form.elements;
// Each is as far from white as from black, and so reads well in the light and in the dark.
const COLORS = ["#e1312a", "#c15610", "#956f00", "#4a8421", "#008282", "#1876d4", "#9553e1", "#df207f"];
const PAUSE = 3_000; // ms after the last key until one has stopped typing
const CHANGE = 300; // ms until another name or colour is told: a colour that is being chosen changes all the time

// These are kept for each tab (sessionStorage), so that two windows can be two people, and a reloaded page is the same one.
function remember(key, value) {
  try {
    sessionStorage.setItem(key, value);
  } catch {} // storage may be forbidden
  return value;
}
function recall(key, initial) {
  try {
    return sessionStorage.getItem(key) ?? remember(key, initial);
  } catch {
    return initial;
  }
}
const id = recall("visitor", crypto.getRandomValues(new Uint32Array(3)).join("-"));
user.value = recall("user", `Guest ${Math.floor(100 + Math.random() * 900)}`);
color.value = recall("color", COLORS[Math.floor(Math.random() * COLORS.length)]);

/** What this page sends is JSON; anything else on the channel, from redis-cli say, is a message without a name. */
function parse(data) {
  try {
    const message = JSON.parse(data);
    if (typeof message.user === "string" && typeof message.text === "string") return message;
  } catch {}
  return { user: "", text: data };
}

const send = connect({
  query: () => ({ id, name: user.value, color: color.value }),
  onopen: tell, // what has changed since the address was made
  onpresent: ({ members, count }) => showPeople(members, count, id),
  onreset() {
    show({ note: "Lines may be missing here." });
  },
  onmessage(data) {
    if (typeof data !== "string") return;
    const message = parse(data);
    paint(show({ user: message.user, body: message.text }).querySelector(".user"), message.color);
  },
});

let typing = false;
let stopping, telling; // timers

/** Tells the view what the others are shown of this visitor. */
function tell() {
  clearTimeout(telling);
  send(JSON.stringify({ present: { name: user.value, color: color.value, typing } }));
}

function setTyping(now) {
  clearTimeout(stopping);
  if (now) stopping = setTimeout(setTyping, PAUSE, false);
  if (typing === now) return;
  typing = now;
  tell();
}

text.addEventListener("input", () => setTyping(text.value !== ""));
for (const input of [user, color]) {
  input.addEventListener("input", () => {
    remember(input.id, input.value);
    clearTimeout(telling);
    telling = setTimeout(tell, CHANGE);
  });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (send(JSON.stringify({ user: user.value.trim(), color: color.value, text: text.value }))) {
    text.value = "";
    setTyping(false);
  }
  text.focus();
});
