// The page's own connection to the broker: MQTT 3.1.1 over websocket, by MQTT.js (global `mqtt`).
// Rule: only this file knows MQTT.js.

const FILTERS = {
  "+/state": 0,
  "+/event": 0,
  "+/events": 0,
  "+/session": 0,
  "+/availability": 0,
  "bridge/availability": 0,
  "bridge/health": 0,
  "bridge/agents/+": 0,
  // QoS 0 above: a lost connection brings all that is retained anew. A result comes once.
  "+/calldata/result": 1,
};

const RETRY_MS = 1000;

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

  /** `on`: { up(), down(), message(topic, text) }. */
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
    this.#client.on("connect", () => this.#subscribe());
    this.#client.on("packetreceive", () => {
      this.heardAt = Date.now();
    });
    this.#client.on("message", (topic, payload) => on.message(topic, decoder.decode(payload)));
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

  #subscribe() {
    const filters = Object.entries(FILTERS).map(([name, qos]) => [`${this.#prefix}/${name}`, { qos }]);
    this.#client.subscribe(Object.fromEntries(filters), (error, granted) => {
      if (!this.#client.connected) return;
      // A cluster that is just choosing a leader refuses; it answers a later try.
      if (error || granted?.some(({ qos }) => qos > 2)) {
        setTimeout(() => this.#client.connected && this.#subscribe(), RETRY_MS);
        return;
      }
      this.up = true;
      this.cutAt = NaN;
      this.#on.up();
    });
  }

  #down() {
    if (!this.up && Number.isFinite(this.cutAt)) return;
    this.up = false;
    this.cutAt = Date.now();
    this.#on.down();
  }
}
