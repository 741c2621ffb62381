// The result beside the head: while a run of the node waits for it, what is dialed is sent, and a picture comes back.

import { ask, post, statusOf } from "../session.js";
import { button, create } from "./elements.js";

const ALIVE = 3000; // milliseconds, after which the page says that it is still there
const PAUSE = 100; // before the next try, when the host is busy
const [OK, NOTHING_YET, REFUSED, BUSY] = [200, 204, 400, 429];

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export class Result {
  #token = null;
  #number = 0;
  #wake = () => {};

  // `queue()` runs the workflow, `dialed()` gives { expression, frame }.
  constructor({ t, queue, dialed }) {
    Object.assign(this, { t, queue, dialed, wanted: false, possible: false });
    this.element = create("div", "afd-result");
    this.picture = Object.assign(create("img"), { alt: t("The result") });
    this.line = create("p", "afd-wait");
    this.line.setAttribute("role", "status");
    this.element.append(this.picture, this.line);
    this.button = button("pi-eye", "", () => this.#toggle());
    this.#draw();
  }

  // Whether a model is connected.
  set available(possible) {
    this.possible = possible;
    this.#draw();
  }

  begin(token) {
    this.#token = token;
    this.wanted = false;
    this.#draw();
    this.#follow(token);
  }

  // Go on with the session of another one.
  succeed(before) {
    const token = before.#token;
    before.#token = null;
    if (token) this.begin(token);
  }

  // What is dialed has changed.
  changed() {
    this.#wake();
  }

  end() {
    this.#token = null;
    this.wanted = false;
    this.#wake();
    URL.revokeObjectURL(this.picture.src);
    this.picture.removeAttribute("src");
    this.#draw();
  }

  stop() {
    if (this.#token) ask(this.#token, "stop");
    this.end();
  }

  async #toggle() {
    const token = this.#token;
    if (token) {
      this.#token = null; // what is dialed is final
      await post(token, this.#body());
      ask(token, "stop");
      return this.end();
    }
    this.wanted = !this.wanted;
    this.#draw();
    if (this.wanted) await this.queue();
  }

  async #follow(token) {
    let drawn;
    while (this.#token === token) {
      const dialed = JSON.stringify(this.dialed());
      const changed = new Promise((resolve) => (this.#wake = resolve));
      if (dialed === drawn) {
        await Promise.race([changed, wait(ALIVE).then(() => (drawn = undefined))]);
        continue;
      }
      const response = await post(token, this.#body());
      if (this.#token !== token) return;
      if (response?.status === OK) {
        const { asked } = statusOf(response);
        this.#show(await response.blob());
        if (asked === this.#number) drawn = dialed;
      } else if (response?.status === REFUSED) drawn = dialed;
      else if ([NOTHING_YET, BUSY].includes(response?.status)) await wait(PAUSE);
      else return this.end();
    }
  }

  #body() {
    this.#number += 1;
    return JSON.stringify({ ...this.dialed(), number: this.#number });
  }

  #show(picture) {
    URL.revokeObjectURL(this.picture.src);
    this.picture.src = URL.createObjectURL(picture);
    this.#draw();
  }

  #draw() {
    const { t } = this;
    const running = Boolean(this.#token);
    const label = running
      ? t("Go on with what is dialed")
      : this.possible
        ? t("Run the workflow and show the result while sliders move")
        : t("To see the result, connect model, reference, vae, pose_encoder and source");
    this.button.title = label;
    this.button.setAttribute("aria-label", label);
    this.button.setAttribute("aria-pressed", running || this.wanted);
    this.button.disabled = !this.possible && !running;
    this.element.hidden = !running && !this.wanted;
    this.line.textContent = this.picture.hasAttribute("src") ? "" : t("Waiting until the run comes to this node …");
  }
}
