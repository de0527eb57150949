// Who opens the page enters the log-in that it reads the broker with. The adapter gives none out.
// Rule: what is entered goes to the broker alone; it is kept only where that is asked for, in this browser.

const KEPT = "wall.login";
// Brokers speak MQTT over websocket there unless told (SPEC section 6: as for `mqtt.url`).
const PATH = "/mqtt";
const LOOPBACK = /^(localhost|127(\.\d+){3}|\[::1\])$/;

const $ = (id) => document.getElementById(id);

function read() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEPT));
    return typeof kept?.broker === "string" ? kept : null;
  } catch {
    return null;
  }
}

function write(login) {
  try {
    if (login) localStorage.setItem(KEPT, JSON.stringify(login));
    else localStorage.removeItem(KEPT);
  } catch {
    // Without storage the log-in lasts as long as the page.
  }
}

/** Take an address apart: `{ address }` as it is used, with a `warning` where there is one, or `{ error }`. */
export function brokerAddress(entered, pageProtocol) {
  let url;
  try {
    url = new URL(entered.trim());
  } catch {
    return { error: "The address begins with wss:// (or ws://), as in wss://broker.example:8084/mqtt." };
  }
  if (!["ws:", "wss:"].includes(url.protocol)) {
    return { error: "The address begins with wss:// (or ws://): browsers speak MQTT over websockets alone." };
  }
  if (url.username || url.password) return { error: "User name and password have fields of their own." };
  if (url.search || url.hash) return { error: "The address has no ? and no #." };
  const local = LOOPBACK.test(url.hostname);
  if (url.protocol === "ws:" && pageProtocol === "https:" && !local) {
    return { error: "This page came by https: browsers then allow wss:// alone." };
  }
  if (url.pathname === "/") url.pathname = PATH;
  const warning = url.protocol === "ws:" && !local ? "Without TLS (ws://) the password can be read on its way." : "";
  return { address: url.href, warning };
}

export class Login {
  #settings;
  #link;
  #trying = null;

  constructor(settings, link) {
    this.#settings = settings;
    this.#link = link;
    $("login-open").hidden = !settings.ask;
    $("login-open").addEventListener("click", () => (link.open ? this.#logOut() : this.#ask("")));
    $("login-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    $("login-broker").addEventListener("input", () => this.#warn());
    $("login-broker").readOnly = settings.broker !== null;
    $("login-broker").value = settings.broker ?? "";
  }

  /** Connect with what is known, or ask. */
  begin() {
    const { ask, broker } = this.#settings;
    const kept = read();
    if (!ask) this.#link.connect(this.#settings);
    else if (kept && (broker === null || broker === kept.broker)) this.#try(kept);
    else this.#ask("");
  }

  up() {
    if (!this.#trying) return;
    if ($("login-keep").checked) write(this.#trying);
    this.#trying = null;
    $("login-password").value = "";
    $("login").close();
    this.#button();
  }

  down() {
    if (!this.#trying || !$("login").open) return;
    this.#say(
      `No answer from ${this.#trying.broker}; it is tried again. See that it is a websocket address, ` +
        "and that this browser trusts its certificate.",
    );
  }

  refused() {
    this.#trying = null;
    write(null);
    this.#ask("The broker does not take this user name and password.");
  }

  #try(login) {
    this.#trying = login;
    $("login-broker").value = login.broker;
    $("login-username").value = login.username ?? "";
    this.#link.connect(login);
    this.#button();
  }

  #submit() {
    const { address, error } = brokerAddress($("login-broker").value, location.protocol);
    if (error) {
      this.#say(error);
      $("login-broker").setAttribute("aria-invalid", "true");
      $("login-broker").focus();
      return;
    }
    this.#say("Connecting …");
    this.#try({ broker: address, username: $("login-username").value, password: $("login-password").value });
  }

  #ask(words) {
    this.#say(words);
    this.#warn();
    this.#button();
    if (!$("login").open) $("login").showModal();
    const empty = ["login-broker", "login-username", "login-password"].find((id) => $(id).value === "");
    $(empty ?? "login-password").focus();
  }

  #warn() {
    const { warning } = brokerAddress($("login-broker").value, location.protocol);
    $("login-warning").textContent = warning ?? "";
    $("login-broker").removeAttribute("aria-invalid");
  }

  #say(words) {
    $("login-said").textContent = words;
  }

  #button() {
    const words = this.#link.open ? "Log out of the broker" : "Log in to the broker";
    $("login-open").setAttribute("aria-label", words);
    $("login-open").title = words;
  }

  /** Forget the log-in and all that it has shown. */
  #logOut() {
    write(null);
    location.reload();
  }
}
