// The plots of the dashboard: each sample that arrives is drawn.

import { connect } from "django_websocket";
import { explainEnd } from "../demo/site.js";
import { plot } from "./plot.js";

const SPAN = 120; // seconds

const plots = document.getElementById("plots");
const received = document.getElementById("received");
const burst = document.getElementById("burst");

let samples = [];
let due; // whether the plots will be drawn soon
let arrived; // { count, begin } of the button's messages

function draw() {
  due = false;
  const now = samples.at(-1).at;
  samples = samples.filter(({ at }) => now - at <= SPAN);
  for (const figure of plots.children) {
    const { value: name } = figure.dataset;
    const points = samples.map((sample) => ({ age: now - sample.at, value: sample[name], up: sample.up }));
    const top = plot(figure.querySelector("svg"), points);
    const latest = points.at(-1).value;
    figure.querySelector("output").textContent = latest === null ? "–" : Number(latest.toFixed(1));
    figure.querySelector(".top-of-scale").textContent = String(top);
  }
}

function countTraffic({ number, of }) {
  if (number === 0) arrived = { count: 0, begin: performance.now() };
  if (arrived && ++arrived.count === of) {
    const took = Math.round(performance.now() - arrived.begin);
    received.textContent = `${of} of ${of} messages have arrived, the last one ${took} ms after the first.`;
  }
}

const socket = connect(plots.dataset.url);
explainEnd(socket);
socket.on("message", (data, { channel }) => {
  const message = JSON.parse(data);
  if (channel === "traffic") return countTraffic(message);
  samples.push(message);
  if (due) return; // many come at once when the page has been away
  due = true;
  requestAnimationFrame(draw);
});

burst.addEventListener("submit", (event) => {
  event.preventDefault(); // without this, it would be sent all the same, and the page would stay
  received.textContent = "Publishing …";
  fetch(burst.action, { method: "POST", body: new FormData(burst) });
});
