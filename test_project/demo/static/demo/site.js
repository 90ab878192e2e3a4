// What every page has: the state of the connection, and the notifications of the user.

import { connect } from "django_websocket";
import { showUnread, toast, updateList } from "../notifications/notifications.js";

const STATES = {
  connecting: "Reconnecting…",
  open: "Connected",
  waiting: "Reconnecting…",
  offline: "No network: waiting for it",
  refused: "Logged out",
  closed: "Closed",
};
const SERVER_STOPPED = 1012; // the close code of a server that restarts

const line = document.getElementById("connection");
const wire = document.querySelector(".wire");
const stop = document.getElementById("stop");

/** Shows the state of a connection, on the wire below the header and in the corner. */
function show({ name, code }) {
  document.documentElement.dataset.connection = name === "connecting" ? "waiting" : name;
  stop?.setAttribute("aria-disabled", name !== "open");
  const text = code === SERVER_STOPPED ? "The server has stopped. Reconnecting…" : STATES[name];
  // While it tries, its states alternate; a screen reader is told only what is new.
  if (name === "connecting" || line.textContent === text) return;
  line.textContent = text;
}

/** Lets a message run along the wire. */
export function pulse() {
  wire.classList.remove("pulse");
  void wire.offsetWidth; // begins the animation anew
  wire.classList.add("pulse");
}

stop?.form.addEventListener("submit", (event) => {
  event.preventDefault(); // the browser would leave the page if the server is away
  if (site.state.name === "open") fetch(stop.form.action, { method: "POST", body: new FormData(stop.form) });
});

const site = connect(document.body.dataset.site);
site.on("state", (state) => {
  show(state);
  if (state.code === 4401) location.reload(); // logged out in another window
});
site.on("message", (data) => {
  const notification = JSON.parse(data);
  showUnread(notification.unread);
  if (notification.id) toast(notification);
  updateList();
  pulse();
});
