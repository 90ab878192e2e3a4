// The list of messages in #log.

const LIMIT = 500; // messages kept
const log = document.getElementById("log");
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const isAtBottom = () => log.scrollHeight - log.scrollTop - log.clientHeight < 16;
const scrollToBottom = () => { log.scrollTop = log.scrollHeight; };

// Who reads the newest message goes on doing so when the window is resized or the phone turned.
let following = true;
log.addEventListener("scroll", () => { following = isAtBottom(); });
new ResizeObserver(() => following && scrollToBottom()).observe(log);

function element(tag, className, text) {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text; // never as HTML: it comes from strangers
  return node;
}

/**
 * Adds a message with the time of its arrival.
 * @param {Record<string, string>} parts texts by the class name of the element that holds them
 * @returns {HTMLElement} the message
 */
export function show(parts) {
  const follow = isAtBottom();
  const message = element("p", "message", "");
  message.append(element("time", "time", clock.format()));
  for (const [name, text] of Object.entries(parts)) message.append(" ", element("span", name, text));
  log.append(message);
  while (log.childElementCount > LIMIT) log.firstElementChild.remove();
  if (follow) scrollToBottom();
  return message;
}
