// A WebSocket that comes back by itself, with its state in #state.

const FIRST_WAIT = 500; // ms
const LONGEST_WAIT = 10_000;
const LABELS = { connecting: "Connecting", open: "Connected", waiting: "Reconnecting" };

/**
 * Connects to the data-url of #address, and again whenever the connection ends. The form's buttons are enabled only
 * while it is open.
 * @param {{onopen?: () => void, onmessage: (data: string | ArrayBuffer) => void}} handlers
 * @returns {(data: string | BufferSource) => boolean} sends, and tells whether it could
 */
export function connect({ onopen, onmessage }) {
  const address = document.getElementById("address");
  const { url } = address.dataset;
  const state = document.getElementById("state");
  const [label, countdown] = state.children;
  const buttons = document.querySelectorAll("form button");
  let socket;
  let timer;
  let wait = FIRST_WAIT;

  function show(name, seconds) {
    state.dataset.state = name;
    if (label.textContent !== LABELS[name]) label.textContent = LABELS[name]; // a screen reader speaks up only for news
    countdown.textContent = seconds ? ` in ${seconds} s` : "";
    for (const button of buttons) button.disabled = name !== "open";
  }

  function open() {
    clearTimeout(timer);
    show("connecting");
    socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => onmessage(data);
    socket.onopen = () => {
      // A server that accepts only to close again must not be called every half second: only a connection that has
      // lasted brings the first wait back.
      timer = setTimeout(() => { wait = FIRST_WAIT; }, wait);
      show("open");
      onopen?.();
    };
    socket.onclose = () => {
      clearTimeout(timer);
      // Jitter, or all clients of a restarted server would come back in the same moment.
      countDown(Date.now() + wait * (0.5 + Math.random() / 2));
      wait = Math.min(2 * wait, LONGEST_WAIT);
    };
  }

  function countDown(end) {
    const left = end - Date.now();
    if (left <= 0) return open();
    show("waiting", Math.ceil(left / 1000));
    timer = setTimeout(countDown, left % 1000 || 1000, end);
  }

  function hurry() {
    if (state.dataset.state === "waiting") open();
  }

  address.textContent = url;
  addEventListener("online", hurry);
  document.addEventListener("visibilitychange", () => document.hidden || hurry()); // timers of hidden pages run late
  open();

  return (data) => {
    if (socket.readyState !== WebSocket.OPEN) return false;
    socket.send(data);
    return true;
  };
}
