// The page's own connection to the broker: MQTT 3.1.1 over websocket, by MQTT.js (global `mqtt`).
// Rule: only this file knows MQTT.js.

// What is retained, by filter. QoS 0: after a lost connection all of it comes anew.
const RETAINED = [
  "+/state",
  "+/event",
  "+/session",
  "+/availability",
  "bridge/availability",
  "bridge/health",
  "bridge/agents/+",
];
const LIVE = { "+/events": 0, "+/calldata/result": 1 };

const RETRY_MS = 1000;
// So long after subscribing, what is retained has come: it is sent at once.
const RETAINED_MS = 2500;
const RETAINED_TRIES = 3;

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

  #client;
  #prefix;
  #on;
  #silent = new Set();
  #settling = 0;

  /** `on`: { up(), settled(), down(), message(topic, text) }; `settled` when what is retained should have come. */
  constructor(settings, on) {
    this.#prefix = settings.prefix;
    this.#on = on;
    this.#client = mqtt.connect(settings.broker, {
      protocolVersion: 4,
      clean: true,
      clientId: `wall-${newId().slice(0, 13)}`,
      username: settings.username ?? undefined,
      password: settings.password ?? undefined,
      keepalive: 15,
      connectTimeout: 5000,
      reconnectPeriod: RETRY_MS,
      resubscribe: false,
    });
    const decoder = new TextDecoder();
    this.#client.on("connect", () => {
      this.#silent = new Set(RETAINED);
      this.#subscribe([...RETAINED.map((name) => [name, 0]), ...Object.entries(LIVE)], () => this.#begin());
    });
    this.#client.on("packetreceive", () => {
      this.heardAt = Date.now();
    });
    this.#client.on("message", (topic, payload) => {
      this.#silent.delete(this.#filterOf(topic));
      on.message(topic, decoder.decode(payload));
    });
    this.#client.on("close", () => this.#down());
    this.#client.on("error", () => this.#down());
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

  #subscribe(filters, done) {
    const topics = Object.fromEntries(filters.map(([name, qos]) => [`${this.#prefix}/${name}`, { qos }]));
    this.#client.subscribe(topics, (error, granted) => {
      if (!this.#client.connected) return;
      // A cluster that is just choosing a leader refuses; it answers a later try.
      if (error || granted?.some(({ qos }) => qos > 2)) {
        setTimeout(() => this.#client.connected && this.#subscribe(filters, done), RETRY_MS);
      } else {
        done();
      }
    });
  }

  #begin() {
    this.up = true;
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

  #down() {
    if (!this.up && Number.isFinite(this.cutAt)) return;
    this.up = false;
    clearTimeout(this.#settling);
    this.cutAt = Date.now();
    this.#on.down();
  }
}
