// Six bars that grow together; each stops when its answer is there.

import { connect } from "django_websocket";
import { explainEnd } from "../demo/site.js";
import { element } from "../demo/ui.js";

const LONGEST = 3_000; // ms, which is the full width

const [page, list, summary, ask, cancel] = ["together", "services", "summary", "ask", "cancel"].map((id) =>
  document.getElementById(id),
);
const socket = connect(page.dataset.url);
explainEnd(socket);
let rows = new Map(); // by service
let begin;

function setWidth(row, time) {
  row.querySelector(".track span").style.width = `${Math.min(100, (100 * time) / LONGEST)}%`;
}

function grow() {
  const running = [...rows.values()].filter((row) => row.matches(".running"));
  for (const row of running) setWidth(row, performance.now() - begin);
  if (running.length) requestAnimationFrame(grow);
}

function row(service) {
  const track = element("span", { className: "track", ariaHidden: "true" }, element("span"));
  return element("li", { className: "running" }, element("span", {}, service), track, element("span", { className: "time" }, "…"));
}

function end(text) {
  for (const each of rows.values()) each.classList.remove("running");
  summary.textContent = text;
  ask.disabled = false;
  cancel.disabled = true;
}

const seconds = (time) => `${time.toFixed(1)} s`;

socket.on("message", (data) => {
  const { asked, answered, after, took, sum, stopped } = JSON.parse(data);
  if (asked) {
    rows = new Map(asked.map((service) => [service, row(service)]));
    list.replaceChildren(...rows.values());
    summary.textContent = "All six have been asked. Answers arrive in any order.";
    begin = performance.now();
    grow();
  } else if (answered) {
    const answer = rows.get(answered);
    answer.className = "answered";
    setWidth(answer, 1_000 * after);
    answer.querySelector(".time").textContent = seconds(after);
  } else if (took) {
    end(`All six have answered after ${seconds(took)}. One after the other, they would have taken ${seconds(sum)}.`);
  } else if (stopped) {
    end("Cancelled. The view has stopped waiting.");
  }
});

socket.on("state", ({ name }) => {
  if (name === "waiting" && cancel.disabled === false) end("The server has stopped, and the answers are lost. Ask again.");
});

ask.addEventListener("click", () => {
  ask.disabled = true;
  cancel.disabled = false;
  summary.textContent = "Asking …";
  socket.send("ask", { queue: true });
});
cancel.addEventListener("click", () => socket.send("stop"));
