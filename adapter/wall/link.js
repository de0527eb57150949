// The page's own connection to the broker: MQTT 3.1.1 over websocket, by MQTT.js (global `mqtt`).
// Rule: only this file knows MQTT.js.

// What is retained, by filter. QoS 0: after a lost connection all of it comes anew. Who there is comes first, as
// brokers send it in this order: else every tile would move to its group when it is known.
const RETAINED = [
  "bridge/availability",
  "bridge/health",
  "bridge/agents/+",
  "+/state",
  "+/event",
  "+/session",
  "+/availability",
];
const LIVE = { "+/events": 0, "+/calldata/result": 1 };
// Without this there is nothing to show; the others a log-in may be denied.
const NEEDED = "+/state";

const RETRY_MS = 1000;
// A log-in that worked and is refused now: somebody is at work at the broker, or has changed it for good.
const REFUSED_RETRY_MS = 30_000;
const SUBSCRIBE_TRIES = 5;
// So long after subscribing, what is retained has come: it is sent at once.
const RETAINED_MS = 2500;
const RETAINED_TRIES = 3;
// CONNACK return codes of MQTT 3.1.1, section 3.2.2.3: bad user name or password, not authorized.
const REFUSALS = [4, 5];
const DENIED = 0x80;

/** An id that nobody else uses. `crypto.randomUUID` is missing where the page is not served securely. */
export function newId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const hex = [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0"));
  return hex.join("");
}

export class Link {
  up = false;
  /** When the page last heard anything of the broker, also an answer to its pings. */
  heardAt = NaN;
  cutAt = NaN;
  /** Whether the broker refuses a log-in that it had taken before. */
  refused = false;
  /** Filters that this log-in may not subscribe to. */
  denied = [];

  #client = null;
  #prefix;
  #on;
  #silent = new Set();
  #settling = 0;
  #everUp = false;

  /**
   * `on`: { up(), settled(), down(), refused(), message(topic, text, retained) }; `settled` when what is retained
   * should have come, `refused` when a new log-in is not taken, which is then not tried again.
   */
  constructor(prefix, on) {
    this.#prefix = prefix;
    this.#on = on;
  }

  /** Whether there is a log-in, taken or still tried. */
  get open() {
    return this.#client !== null;
  }

  /** Connect, and stay connected, as `{ broker, username, password }`. */
  connect({ broker, username, password }) {
    this.close();
    const client = mqtt.connect(broker, {
      protocolVersion: 4,
      clean: true,
      clientId: `wall-${newId().slice(0, 13)}`,
      username: username || undefined,
      password: password || undefined,
      keepalive: 15,
      connectTimeout: 5000,
      reconnectPeriod: RETRY_MS,
      resubscribe: false,
      reconnectOnConnackError: true,
    });
    this.#client = client;
    const decoder = new TextDecoder();
    client.on("connect", () => {
      client.options.reconnectPeriod = RETRY_MS;
      this.refused = false;
      this.denied = [];
      this.#silent = new Set(RETAINED);
      this.#subscribe([...RETAINED.map((name) => [name, 0]), ...Object.entries(LIVE)], () => this.#begin());
    });
    client.on("packetreceive", () => {
      this.heardAt = Date.now();
    });
    client.on("message", (topic, payload, packet) => {
      this.#silent.delete(this.#filterOf(topic));
      this.#on.message(topic, decoder.decode(payload), packet.retain);
    });
    client.on("close", () => this.#client === client && this.#down());
    client.on("error", (error) => {
      if (this.#client !== client) return;
      if (REFUSALS.includes(error.code)) this.#refuse();
      else this.#down();
    });
  }

  /** Give the log-in up. */
  close() {
    this.#client?.end(true);
    this.#client = null;
    this.#everUp = false;
    this.up = false;
    this.refused = false;
    this.cutAt = NaN;
    clearTimeout(this.#settling);
  }

  /** Publish at QoS 1; resolves with the PUBACK. `forget()` takes it back while it was not acknowledged. */
  publish(topic, payload) {
    let forget = () => {};
    const acknowledged = new Promise((resolve, reject) => {
      const client = this.#client.publish(`${this.#prefix}/${topic}`, payload, { qos: 1 }, (error) => {
        if (error) reject(error);
        else resolve();
      });
      const mid = client.getLastMessageId();
      forget = () => client.removeOutgoingMessage(mid);
    });
    return { acknowledged, forget };
  }

  /**
   * Subscribe, and call `done` once there is something to show. What is refused is asked for again some times, as a
   * cluster refuses while it chooses a leader; then it is denied.
   */
  #subscribe(filters, done, tries = SUBSCRIBE_TRIES) {
    const client = this.#client;
    const topics = Object.fromEntries(filters.map(([name, qos]) => [`${this.#prefix}/${name}`, { qos }]));
    // MQTT.js calls a SUBACK with a refusal an error; the packet, which comes with it, says which were refused.
    client.subscribe(topics, (error, granted, packet) => {
      if (this.#client !== client || !client.connected) return;
      const codes = packet?.granted ?? filters.map(() => DENIED);
      const left = filters.filter((_, index) => codes[index] >= DENIED);
      const waits = left.some(([name]) => name === NEEDED);
      if (!waits) done();
      if (left.length && (waits || tries > 1)) {
        const again = () => this.#subscribe(left, waits ? done : () => {}, tries - 1);
        setTimeout(() => this.#client === client && client.connected && again(), RETRY_MS);
      } else if (left.length) {
        this.denied = left.map(([name]) => name);
        for (const name of this.denied) this.#silent.delete(name);
      }
    });
  }

  #begin() {
    this.up = true;
    this.#everUp = true;
    this.cutAt = NaN;
    this.#on.up();
    this.#settle(RETAINED_TRIES);
  }

  /**
   * Ask again for what is retained where nothing came: nearly always there is nothing, but a nats-server 2.15 which
   * was started a moment ago can grant a subscription and leave its retained messages out (one in a hundred).
   */
  #settle(tries) {
    clearTimeout(this.#settling);
    this.#settling = setTimeout(() => {
      if (!this.up) return;
      this.#on.settled();
      if (tries > 0 && this.#silent.size) {
        this.#subscribe([...this.#silent].map((name) => [name, 0]), () => this.#settle(tries - 1));
      }
    }, RETAINED_MS);
  }

  #filterOf(topic) {
    const [who, what] = topic.slice(this.#prefix.length + 1).split("/");
    if (who !== "bridge") return `+/${what}`;
    return what === "agents" ? "bridge/agents/+" : `bridge/${what}`;
  }

  #refuse() {
    if (!this.#everUp) {
      this.close();
      this.#on.refused();
      return;
    }
    this.refused = true;
    this.#client.options.reconnectPeriod = REFUSED_RETRY_MS;
    this.#down();
  }

  #down() {
    if (!this.up && Number.isFinite(this.cutAt)) return;
    this.up = false;
    clearTimeout(this.#settling);
    this.cutAt = Date.now();
    this.#on.down();
  }
}
