// A WebSocket that reconnects by itself, continues where it was, and says in which state it is and who is there.
// docs/pages.md says how to use it, docs/subprotocol.md what it says to the server.

const SUBPROTOCOL = "django-websocket.1";

const FIRST_WAIT = 4_000; // ms: the longest wait before the first attempt to come back; each failure doubles it
const LONGEST_WAIT = 30_000; // ms
const PATIENCE = 10_000; // ms until an attempt without an answer is given up
const LASTING = 5_000; // ms after which a connection has proved good, and earlier failures are forgotten
const GLANCE = 5_000; // ms between two looks at the clock
const ASLEEP = 150_000; // ms between two looks that show that the device has slept; hidden pages look once a minute
const MISSED_BEATS = 2.5; // of the server, after which a connection counts as dead
const QUEUE_SIZE = 1024 * 1024; // characters or bytes that may wait for a connection
const OVERHEAD = 100; // that a waiting message counts in addition
const CHANNELS = 1_000; // that are remembered, those that were subscribed to last
const RESET_PAUSE = 10_000; // ms between two resets of a socket, doubled each time: a cached page may always get one
const HEAD_SIZE = 64; // bytes in which the head of a binary message ends
const MEMBERS = 1_000; // that are remembered of each channel
const SESSION = `${SUBPROTOCOL}.session`; // where a page leaves the tab's session
const HANDOVER = 60_000; // ms in which the next page takes it

const EVENTS = ["message", "reset", "state", "present", "join", "leave"];
const ENDED = 1000; // the close code after a view that has returned: it is not to be run again
const REFUSED = [4401, 4403, 4404]; // the next attempt would be refused as well

/** How much of the queue a message takes. */
const sizeOf = (data) => OVERHEAD + (data.length ?? data.byteLength ?? data.size);

/** Takes the session out of the storage, since a duplicate of the tab gets a copy of that. */
function takeSession() {
  try {
    const [session, left] = (sessionStorage.getItem(SESSION) ?? "").split(",");
    sessionStorage.removeItem(SESSION);
    if (Date.now() - left < HANDOVER) return session;
  } catch {} // storage may be forbidden
}

// By its session, the server knows a tab that has loaded another page.
const session = takeSession() ?? crypto.getRandomValues(new Uint32Array(4)).join("-");
let sockets = 0; // of this page: two may have the same channel, and need a session each

// There is no window where a server renders pages.
globalThis.addEventListener?.("pagehide", () => {
  try {
    sessionStorage.setItem(SESSION, [session, Date.now()]);
  } catch {}
});
globalThis.addEventListener?.("pageshow", ({ persisted }) => {
  if (persisted) setTimeout(takeSession, 1_000); // the page that was here is hidden after that
});

class Socket {
  #url;
  #protocols;
  #binaryType;
  #socket;
  #attempt; // of getting an address; an older one has no effect
  #timer;
  #failures = 0;
  #advice; // of the server, when to come back
  #silence = Infinity; // ms without a word after which the connection counts as dead
  #heard = 0; // when the last word came, as Date.now() has it
  #positions; // by channel, where to go on, or null: those that were subscribed to, the latest last
  #channels = new Map(); // of this connection, by number
  #session = `${session}.${sockets++}`;
  #rooms = new Map(); // by channel, its members by id, and their count
  #queue = [];
  #queued = 0; // size of what waits
  #handlers = new Map(EVENTS.map((name) => [name, new Set()]));
  #state;
  #over = new AbortController(); // removes the listeners

  /** The application's subprotocol that the server has chosen, "" for none. */
  protocol = "";

  constructor(url, { protocols = [], binaryType = "arraybuffer", positions = {} } = {}) {
    this.#url = url;
    this.#protocols = [SUBPROTOCOL].concat(protocols);
    this.#binaryType = binaryType;
    this.#positions = new Map(Object.entries(positions));
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
      const now = Date.now();
      const slept = now - last > ASLEEP;
      const silent = this.#state.name === "open" && now - this.#heard > this.#silence;
      last = now;
      if (slept || silent) this.#open();
    }, GLANCE);
    signal.addEventListener("abort", () => clearInterval(glance));
  }

  /** The present state: `{ name }`, with `code` and `reason` of the last end, and `wait` in ms. */
  get state() {
    return this.#state;
  }

  /** Calls `handler` at each event `name`, and at once with the present state. Returns a function that removes it. */
  on(name, handler) {
    const handlers = this.#handlers.get(name);
    if (!handlers) throw new TypeError(`There is no event "${name}", only ${EVENTS.join(", ")}.`);
    handlers.add(handler);
    if (name === "state") handler(this.#state);
    return () => handlers.delete(handler);
  }

  /** The members of a channel that are known. */
  present(channel) {
    return [...(this.#rooms.get(channel)?.members.values() ?? [])];
  }

  /** How many there are; 0 if that is not known. */
  count(channel) {
    return this.#rooms.get(channel)?.count ?? 0;
  }

  /** Sends a message; with `queue`, keeps it until there is a connection. Returns false if it did neither. */
  send(data, { queue = false } = {}) {
    if (this.#state.name === "open" && this.#socket.readyState === WebSocket.OPEN) {
      this.#socket.send(data);
      return true;
    }
    if (!queue || this.#over.signal.aborted || this.#queued + sizeOf(data) > QUEUE_SIZE) return false;
    this.#queue.push(data);
    this.#queued += sizeOf(data);
    return true;
  }

  /** Closes the connection for good. */
  close(code = ENDED, reason = "") {
    if (this.#over.signal.aborted) return;
    this.#drop(code, reason);
    this.#finish({ name: "closed", code, reason });
  }

  // --- connections ---------------------------------------------------------------------------------------------------

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
          this.#again("The address could not be determined.");
        });
    } else {
      this.#use(new WebSocket(this.#url, this.#protocols));
    }
    this.#show({ name: "connecting" });
  }

  #use(socket) {
    this.#socket = socket;
    socket.onopen = () => {
      if (socket.protocol === SUBPROTOCOL) {
        socket.binaryType = "arraybuffer";
        socket.onmessage = ({ data }) => this.#take(data);
        const positions = Object.fromEntries([...this.#positions].slice(-CHANNELS));
        socket.send(JSON.stringify({ hello: { positions, session: this.#session } }));
      } else {
        socket.binaryType = this.#binaryType;
        socket.onmessage = ({ data }) => this.#tell("message", data, {});
        this.#begin(socket.protocol, Infinity);
      }
    };
    socket.onclose = ({ code, reason }) => {
      if (code === ENDED) this.#finish({ name: "closed", code, reason });
      else if (REFUSED.includes(code)) this.#finish({ name: "refused", code, reason });
      else this.#again(reason, code);
    };
  }

  #begin(protocol, silence) {
    this.protocol = protocol;
    this.#silence = silence;
    this.#advice = undefined;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => (this.#failures = 0), LASTING);
    this.#show({ name: "open" });
    // A handler may have closed the connection.
    while (this.#queue.length && this.#socket?.readyState === WebSocket.OPEN) {
      const data = this.#queue.shift();
      this.#queued -= sizeOf(data);
      this.#socket.send(data);
    }
  }

  #again(reason, code = 1006) {
    this.#drop();
    let wait;
    if (this.#advice) {
      const { after, within } = this.#advice;
      wait = 1_000 * (after + within * Math.random());
      this.#advice = undefined;
    } else {
      const longest = Math.min(FIRST_WAIT * 2 ** this.#failures++, LONGEST_WAIT);
      // Anywhere in that time, so that the pages of a restarted server do not all come at once; but not too soon, or a
      // view that fails whenever it has accepted would be called all the time.
      wait = longest * (1 / 6 + (Math.random() * 5) / 6);
    }
    wait = Math.round(wait);
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
    this.#channels.clear();
  }

  #finish(state) {
    this.#drop();
    this.#queue = [];
    this.#over.abort();
    this.#show(state);
  }

  // --- what the server says ------------------------------------------------------------------------------------------

  #take(data) {
    this.#heard = Date.now();
    const text = typeof data === "string";
    // latin-1 has a character for each byte
    const head = text ? data : new TextDecoder("latin1").decode(new Uint8Array(data, 0, Math.min(data.byteLength, HEAD_SIZE)));
    const payload = (start) =>
      text || this.#binaryType === "arraybuffer" ? data.slice(start) : new Blob([data.slice(start)]);
    if (head[0] === "{") return this.#heed(JSON.parse(data));
    if (head[0] === "s") return this.#tell("message", payload(1), {});
    const first = head.indexOf(":");
    const second = head.indexOf(":", first + 1);
    const { name, end } = this.#channels.get(Number(head.slice(1, first)));
    const position = head.slice(first + 1, second);
    if (position && this.#positions.has(name)) this.#positions.set(name, position);
    this.#tell("message", payload(second + 1), { channel: name, replayed: parseInt(position) <= end });
  }

  /** Does what the server says beside the messages; what it does not know, it leaves alone. */
  #heed({ welcome, sub = {}, unsub = [], count = {}, present, leave, join, reset, retry }) {
    for (const [name, [number, begin, end]] of Object.entries(sub)) {
      // A second subscription may begin before what the first one has brought.
      const known = this.#channels.has(number) ? this.#positions.get(name) : null;
      this.#channels.set(number, { name, end: parseInt(end) });
      this.#positions.delete(name); // so that it is the last one
      this.#positions.set(name, parseInt(known) > parseInt(begin) ? known : begin);
      if (this.#positions.size > CHANNELS) this.#positions.delete(this.#positions.keys().next().value);
    }
    for (const name of unsub) {
      this.#positions.set(name, null);
      if (this.#rooms.delete(name)) this.#tell("present", { channel: name, members: [], count: 0 });
    }
    this.#attend(count, present, leave, join);
    if (retry) this.#advice = retry;
    if (welcome) this.#begin(welcome.protocol ?? "", 1_000 * MISSED_BEATS * welcome.beat);
    if (reset) this.#reset(reset);
  }

  /** Keeps up with who is there. */
  #attend(counts, ...news) {
    // Not objects, which would know a channel that somebody has named "constructor".
    const [lists, leaves, joins] = news.map((each = {}) => new Map(Object.entries(each)));
    for (const [channel, count] of Object.entries(counts)) {
      const list = lists.get(channel);
      const room = this.#rooms.get(channel);
      if (!list && !room) continue;
      const before = new Map(room?.members);
      const members = new Map(list?.map((member) => [member.id, member]) ?? before);
      for (const id of leaves.get(channel) ?? []) {
        if (!before.has(id)) before.set(id, { id });
        members.delete(id);
      }
      for (const member of joins.get(channel) ?? []) members.set(member.id, member);
      this.#rooms.set(channel, { members: new Map([...members].slice(0, MEMBERS)), count });
      // The first list is no news, and two lists of a large channel differ although nobody has moved.
      const silent = list && !(room?.count <= MEMBERS && count <= MEMBERS);
      const tell = (name, some, others) => {
        const moved = [...some.values()].filter(({ id }) => !others.has(id));
        if (moved.length && !silent) this.#tell(name, moved, { channel, count });
      };
      tell("leave", before, members);
      tell("join", members, before);
      this.#tell("present", { channel, members: this.present(channel), count });
    }
  }

  #reset(channels) {
    if (!this.#handlers.get("reset").size) {
      console.warn(`Messages of ${channels.join(", ")} are lost. Load the present state in a handler: on("reset", …).`);
    }
    let wait = 0;
    try {
      const key = SUBPROTOCOL + this.#session.slice(-2);
      const [last = 0, pause = 0] = (sessionStorage.getItem(key) ?? "").split(",").map(Number);
      wait = Math.max(0, last + pause - Date.now());
      sessionStorage.setItem(key, [Date.now() + wait, wait ? 2 * pause : RESET_PAUSE]);
    } catch {} // storage may be forbidden
    const tell = () => this.#tell("reset", { channels });
    if (wait) setTimeout(tell, wait);
    else tell();
  }

  // --- what the page is told -----------------------------------------------------------------------------------------

  #show(state) {
    this.#state = state;
    this.#tell("state", state);
  }

  #tell(name, ...values) {
    for (const handler of [...this.#handlers.get(name)]) {
      try {
        handler(...values);
      } catch (error) {
        reportError(error); // as the browser does for its own events: the other handlers are called all the same
      }
    }
  }
}

/** Connects to an address, or to the one that a function returns or promises; it is called for each attempt. */
export function connect(url, options) {
  return new Socket(url, options);
}
