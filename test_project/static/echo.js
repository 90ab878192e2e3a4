import { show } from "./log.js";
import { connect } from "./socket.js";

const form = document.getElementById("form");
const { binary, text } = form.elements;
let sent = []; // when each message that is still out has left; the answers come in the same order

const send = connect({
  onopen() {
    sent = [];
  },
  onmessage(data) {
    const time = `${(performance.now() - sent.shift()).toFixed(1)} ms`;
    if (typeof data === "string") show({ body: data, note: time });
    else show({ body: new TextDecoder().decode(data), note: `binary, ${data.byteLength} bytes, ${time}` });
  },
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const now = performance.now();
  if (send(binary.checked ? new TextEncoder().encode(text.value) : text.value)) {
    sent.push(now);
    text.value = "";
  }
  text.focus();
});
