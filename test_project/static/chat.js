import { show } from "./log.js";
import { connect } from "./socket.js";

const form = document.getElementById("form");
const { user, color, text } = form.elements;
// Each is as far from white as from black, and so reads well in the light and in the dark.
const COLORS = ["#e1312a", "#c15610", "#956f00", "#4a8421", "#008282", "#1876d4", "#9553e1", "#df207f"];

// Name and colour are remembered for each tab (sessionStorage), so that two windows can be two people.
function remember(input, initial) {
  input.value = initial;
  try {
    input.value = sessionStorage.getItem(input.id) ?? initial;
  } catch {} // storage may be forbidden
  input.addEventListener("input", () => {
    try {
      sessionStorage.setItem(input.id, input.value);
    } catch {}
  });
}
remember(user, `Guest ${Math.floor(100 + Math.random() * 900)}`);
remember(color, COLORS[Math.floor(Math.random() * COLORS.length)]);

/** What this page sends is JSON; anything else on the channel, from redis-cli say, is a message without a name. */
function parse(data) {
  try {
    const message = JSON.parse(data);
    if (typeof message.user === "string" && typeof message.text === "string") return message;
  } catch {}
  return { user: "", text: data };
}

/** How light a colour is, from 0 to 1: WCAG's relative luminance. In contrast, 0.18 is halfway from black to white. */
function luminance(color) {
  const [red, green, blue] = [1, 3, 5].map((at) => (parseInt(color.slice(at, at + 2), 16) / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

const send = connect({
  onreset() {
    show({ note: "Lines may be missing here." });
  },
  onmessage(data) {
    if (typeof data !== "string") return;
    const message = parse(data);
    const name = show({ user: message.user, body: message.text }).querySelector(".user");
    if (typeof message.color === "string" && /^#[0-9a-f]{6}$/i.test(message.color)) {
      name.style.color = message.color;
      name.classList.toggle("light", luminance(message.color) > 0.2); // the stylesheet sees to the contrast
      name.classList.toggle("dark", luminance(message.color) < 0.16);
    }
  },
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (send(JSON.stringify({ user: user.value.trim(), color: color.value, text: text.value }))) text.value = "";
  text.focus();
});
