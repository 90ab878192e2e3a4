// What every page has: the state of the connection, and the notifications of the user.

import { connect } from "django_websocket";
import { element } from "./ui.js";
import { refresh, showUnread, toast } from "../notifications/notifications.js";

const STATES = {
  open: "Connected",
  waiting: "Reconnecting…",
  offline: "No network: waiting for it",
  refused: "Disconnected",
  closed: "Closed",
};

const line = document.getElementById("connection");
const wire = document.querySelector(".wire");
const stop = document.getElementById("stop");
let stopped = false; // by the server's own word
let disconnected = false; // by staff: it stays so until the page is loaded again

/** Shows the state of a connection, on the wire below the header and in the corner. */
function show({ name, code, reason }) {
  if (disconnected || name === "connecting") return; // while it tries, its states alternate; what counts is whether it succeeds
  document.documentElement.dataset.connection = name;
  stop?.setAttribute("aria-disabled", name !== "open");
  const stops = code === 1012 && reason === "restart"; // staff may close with the same code
  if (name === "open" || stops) stopped = stops;
  const text = stopped ? "Server stopped. Reconnecting…" : STATES[name];
  if (line.textContent !== text) line.textContent = text; // a screen reader is told only what is new
}

/** Has a page say so if staff have disconnected it for good, or load itself again if its user has logged out. */
export function explainEnd(socket) {
  socket.on("state", async ({ code, reason }) => {
    if (code !== 4401) return;
    const answer = await fetch(location.href);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (page.body.dataset.user !== document.body.dataset.user) return location.reload();
    show({ name: "refused" });
    disconnected = true;
    const comeBack = element("a", { href: location.pathname }, "Come back");
    line.replaceChildren(`Disconnected by staff${reason && `: ${reason}`}. `, comeBack);
  });
}

/** Lets a message run along the wire. */
export function pulse() {
  wire.classList.remove("pulse");
  void wire.offsetWidth; // begins the animation anew
  wire.classList.add("pulse");
}

stop?.form.addEventListener("submit", (event) => {
  event.preventDefault(); // the browser would leave the page if the server is away
  if (site.state.name === "open" && !disconnected) fetch(stop.form.action, { method: "POST", body: new FormData(stop.form) });
});

const site = connect(document.body.dataset.site);
site.on("state", show);
explainEnd(site);
site.on("message", (data) => {
  const notification = JSON.parse(data);
  showUnread(notification.unread);
  if (notification.id) toast(notification);
  if (document.getElementById("notifications")) refresh();
  pulse();
});
site.on("reset", refresh); // news may be lost, but not what they are about
