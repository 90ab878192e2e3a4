import { show } from "./log.js";
import { connect } from "./socket.js";

const form = document.getElementById("form");
const { ping, pong, text, sent } = form.elements;
const send = connect({ onmessage: (data) => show({ body: data }) });

function say(message) {
  const done = send(message);
  if (done) sent.value = `Sent “${message}”.`; // silence is an answer too: show what was asked
  return done;
}

for (const button of [ping, pong]) button.addEventListener("click", () => say(button.value));

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (say(text.value)) text.value = "";
  text.focus();
});
