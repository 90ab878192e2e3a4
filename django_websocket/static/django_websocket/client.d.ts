/** What can be sent. */
export type Data = string | ArrayBufferLike | ArrayBufferView | Blob;

/** The state of a connection. `code` and `reason` are those of the last close frame, `wait` is in milliseconds. */
export type State =
  | { name: "connecting" | "open" }
  | { name: "waiting" | "offline"; wait: number; code: number; reason: string }
  | { name: "closed" | "refused"; code: number; reason: string };

/** Where a message came from. */
export interface Origin {
  /** The channel; undefined for a message that the view itself has sent. */
  channel?: string;
  /** Whether the message was published before the connection began. */
  replayed?: boolean;
}

/** A user in a channel, as the view has given it in `present=`. */
export interface Member {
  readonly id: string | number;
  readonly [name: string]: any;
}

/** Which channel has changed, and how many members it has now. */
export interface Change {
  channel: string;
  count: number;
}

/** Who is in a channel now. */
export interface Presence extends Change {
  /** 1,000 at most. */
  members: Member[];
}

export interface Options {
  /** Subprotocols of the application to offer. */
  protocols?: string | string[];
  /** How binary messages are given to handlers; the default is "arraybuffer". */
  binaryType?: BinaryType;
  /** Where to begin: for each channel, a position that `django_websocket.pubsub.position()` has returned. */
  positions?: Record<string, string>;
}

/** A WebSocket that reconnects by itself. */
export interface Socket {
  readonly state: State;
  /** The application's subprotocol that the server has chosen, "" for none. */
  readonly protocol: string;
  /** Calls `handler` with each message. Returns a function that removes it. */
  on(name: "message", handler: (data: any, origin: Origin) => void): () => void;
  /** Calls `handler` when messages of channels are lost: load the present state. Returns a function that removes it. */
  on(name: "reset", handler: (lost: { channels: string[] }) => void): () => void;
  /** Calls `handler` with the present state, and with each new one. Returns a function that removes it. */
  on(name: "state", handler: (state: State) => void): () => void;
  /** Calls `handler` with the first list of who is there, and after each change. Returns a function that removes it. */
  on(name: "present", handler: (presence: Presence) => void): () => void;
  /** Calls `handler` with the members who have joined, or who have left. Returns a function that removes it. */
  on(name: "join" | "leave", handler: (members: Member[], change: Change) => void): () => void;
  /** The members of a channel that the page knows, 1,000 at most; none if the view does not use `present=`. */
  present(channel: string): Member[];
  /** How many members a channel has; 0 if that is not known. */
  count(channel: string): number;
  /** Sends a message; with `queue`, keeps it until there is a connection. Returns false if it did neither. */
  send(data: Data, options?: { queue?: boolean }): boolean;
  /** Closes the connection for good. */
  close(code?: number, reason?: string): void;
}

/** Connects to an address, or to the one that a function returns or promises; it is called for each attempt. */
export function connect(
  url: string | URL | (() => string | URL | Promise<string | URL>),
  options?: Options,
): Socket;
