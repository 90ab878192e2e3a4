// A WebSocket that comes back by itself and tells in which state it is. docs/pages.md says how to use it.

const FIRST_WAIT = 4_000; // ms: the longest wait before the first attempt to come back; each failure doubles it
const LONGEST_WAIT = 30_000; // ms
const PATIENCE = 10_000; // ms until an attempt without an answer is given up
const LASTING = 5_000; // ms after which a connection has proved good, and earlier failures are forgotten
const GLANCE = 5_000; // ms between two looks at the clock
const ASLEEP = 150_000; // ms between two looks that show that the device has slept; hidden pages look once a minute
const QUEUE_SIZE = 1024 * 1024; // characters or bytes that may wait for a connection
const OVERHEAD = 100; // that a waiting message counts in addition to its own size

const ENDED = 1000; // the close code after a view that has returned: it is not to be run again
const REFUSED = [4401, 4403, 4404]; // the next attempt would be refused as well

class Socket {
  #url;
  #protocols;
  #binaryType;
  #socket;
  #attempt; // of getting an address; an older one has no effect
  #timer;
  #failures = 0;
  #queue = [];
  #queued = 0; // size of what waits
  #handlers = { message: new Set(), state: new Set() };
  #state;
  #over = new AbortController(); // removes the listeners

  constructor(url, { protocols = [], binaryType = "arraybuffer" } = {}) {
    this.#url = url;
    this.#protocols = protocols;
    this.#binaryType = binaryType;
    this.#open();
    const { signal } = this.#over;
    addEventListener("online", () => this.#hurry(), { signal });
    addEventListener("pageshow", ({ persisted }) => persisted && this.#hurry(), { signal });
    document.addEventListener("visibilitychange", () => document.hidden || this.#hurry(), { signal });
    // A page is kept for the back button only if it has no connection.
    addEventListener("pagehide", ({ persisted }) => persisted && this.#socket && this.#again("The page was left."), {
      signal,
    });
    let last = Date.now();
    const glance = setInterval(() => {
      const slept = Date.now() - last > ASLEEP;
      last = Date.now();
      if (slept) this.#open();
    }, GLANCE);
    signal.addEventListener("abort", () => clearInterval(glance));
  }

  /** The present state: `{ name }`, with `code` and `reason` of the last end, and `wait` in ms. */
  get state() {
    return this.#state;
  }

  /** Calls `handler` at each event `name`, and at once with the present state. Returns a function that ends that. */
  on(name, handler) {
    const handlers = this.#handlers[name];
    if (!handlers) throw new TypeError(`There is no event "${name}", only "message" and "state".`);
    handlers.add(handler);
    if (name === "state") handler(this.#state);
    return () => handlers.delete(handler);
  }

  /** Sends, or keeps with `queue` until there is a connection. Returns whether it did either. */
  send(data, { queue = false } = {}) {
    if (this.#socket?.readyState === WebSocket.OPEN) {
      this.#socket.send(data);
      return true;
    }
    const size = OVERHEAD + (data.length ?? data.byteLength ?? data.size);
    if (!queue || this.#over.signal.aborted || this.#queued + size > QUEUE_SIZE) return false;
    this.#queue.push(data);
    this.#queued += size;
    return true;
  }

  /** Closes the connection for good. */
  close(code = ENDED, reason = "") {
    if (this.#over.signal.aborted) return;
    this.#drop(code, reason);
    this.#finish({ name: "closed", code, reason });
  }

  #open() {
    this.#drop();
    this.#timer = setTimeout(() => this.#again("The server did not answer."), PATIENCE);
    if (typeof this.#url === "function") {
      const attempt = (this.#attempt = {});
      Promise.resolve()
        .then(this.#url)
        .then((url) => attempt === this.#attempt && this.#use(new WebSocket(url, this.#protocols)))
        .catch((error) => {
          if (attempt !== this.#attempt) return;
          reportError(error);
          this.#again("There is no address.");
        });
    } else {
      this.#use(new WebSocket(this.#url, this.#protocols));
    }
    this.#show({ name: "connecting" });
  }

  #use(socket) {
    this.#socket = socket;
    socket.binaryType = this.#binaryType;
    socket.onmessage = ({ data }) => this.#tell("message", data);
    socket.onopen = () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => (this.#failures = 0), LASTING);
      this.#show({ name: "open" });
      // A handler may have closed the connection.
      while (this.#queue.length && this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(this.#queue.shift());
      if (!this.#queue.length) this.#queued = 0;
    };
    socket.onclose = ({ code, reason }) => {
      if (code === ENDED) this.#finish({ name: "closed", code, reason });
      else if (REFUSED.includes(code)) this.#finish({ name: "refused", code, reason });
      else this.#again(reason, code);
    };
  }

  #again(reason, code = 1006) {
    this.#drop();
    const longest = Math.min(FIRST_WAIT * 2 ** this.#failures++, LONGEST_WAIT);
    // Anywhere in that time, so that the pages of a restarted server do not all come at once; but not too soon, or a
    // view that fails whenever it has accepted would be called all the time.
    const wait = Math.round(longest * (1 / 6 + (Math.random() * 5) / 6));
    this.#timer = setTimeout(() => this.#open(), wait);
    this.#show({ name: navigator.onLine ? "waiting" : "offline", wait, code, reason });
  }

  #hurry() {
    if (["waiting", "offline"].includes(this.#state.name)) this.#open();
  }

  #drop(...end) {
    const socket = this.#socket;
    socket?.close(...end); // raises an error for a wrong code, and then nothing has happened
    if (socket) socket.onopen = socket.onmessage = socket.onclose = null;
    clearTimeout(this.#timer);
    this.#socket = this.#attempt = undefined;
  }

  #finish(state) {
    this.#drop();
    this.#queue = [];
    this.#over.abort();
    this.#show(state);
  }

  #show(state) {
    this.#state = state;
    this.#tell("state", state);
  }

  #tell(name, value) {
    for (const handler of [...this.#handlers[name]]) {
      try {
        handler(value);
      } catch (error) {
        reportError(error); // as the browser does for its own events: the other handlers are called all the same
      }
    }
  }
}

/** Connects to an address, or to what a function returns or promises, anew for each attempt. */
export function connect(url, options) {
  return new Socket(url, options);
}
