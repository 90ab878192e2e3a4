// What every page has: the state of the connection, and the notifications of the user.

import { connect } from "django_websocket";
import { refresh, showUnread, toast } from "../notifications/notifications.js";

const STATES = {
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
let stopped = false; // by the server's own word

/** Shows the state of a connection, on the wire below the header and in the corner. */
function show({ name, code }) {
  if (name === "connecting") return; // while it tries, its states alternate; what counts is whether it succeeds
  document.documentElement.dataset.connection = name;
  stop?.setAttribute("aria-disabled", name !== "open");
  if (name === "open" || code === SERVER_STOPPED) stopped = code === SERVER_STOPPED;
  const text = stopped ? "Server stopped. Reconnecting…" : STATES[name];
  if (line.textContent !== text) line.textContent = text; // a screen reader is told only what is new
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
  if (document.getElementById("notifications")) refresh();
  pulse();
});
site.on("reset", refresh); // news may be lost, but not what they are about
