// The poll. A consumer sends all results when one connects, so that a page which was away needs nothing else.

import { connect } from "django_websocket";
import { explainEnd } from "../demo/site.js";

const form = document.getElementById("poll");
const socket = connect(form.dataset.url);
explainEnd(socket);

socket.on("message", (data) => {
  const results = JSON.parse(data);
  const votes = Math.max(1, ...Object.values(results));
  for (const label of form.querySelectorAll("label")) {
    const count = results[label.querySelector("input").value];
    label.querySelector("output").textContent = count;
    label.querySelector(".bar span").style.width = `${(100 * count) / votes}%`;
  }
});

form.addEventListener("change", ({ target }) => {
  socket.send(JSON.stringify({ choice: target.value }), { queue: true });
});
