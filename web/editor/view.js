// The head on a canvas, turned with the mouse or the arrow keys.

import { Painter } from "./draw.js";
import { clamp, fromEuler } from "./head.js";

const SHARPNESS = 2; // pixels drawn per pixel shown: the edges come out smooth
const MOST_PIXELS = 720; // along the shorter side
const DEGREES_PER_PIXEL = 0.6;
const KEY_DEGREES = 5;
const FRONT = [0, 0];
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class View {
  constructor(label) {
    this.element = document.createElement("div");
    this.element.className = "afd-view";
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.title = label;
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", label);
    this.element.append(this.canvas);
    this.turn = FRONT;
    this.look = "shaded";
    this.#listen();
    new ResizeObserver(() => this.redraw()).observe(this.element);
  }

  // `state` is what Head.edit gives.
  show(head, state) {
    if (this.head !== head) this.painter = new Painter(head);
    Object.assign(this, { head, state });
    this.redraw();
  }

  set({ turn = this.turn, look = this.look }) {
    Object.assign(this, { turn, look });
    this.element.classList.toggle("afd-normals", look === "normals");
    this.redraw();
  }

  redraw() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = undefined;
      this.#draw();
    });
  }

  #draw() {
    const { clientWidth, clientHeight } = this.element;
    if (!this.head || !clientWidth || !clientHeight) return;
    const scale = Math.min(SHARPNESS, MOST_PIXELS / Math.min(clientWidth, clientHeight));
    // even numbers: the square in the middle then begins at whole pixels
    const [width, height] = [clientWidth, clientHeight].map((side) => 2 * Math.round((side * scale) / 2));
    if (this.canvas.width !== width || this.canvas.height !== height || !this.image) {
      Object.assign(this.canvas, { width, height });
      this.image = new ImageData(width, height);
    }
    const view = fromEuler(this.turn[0], this.turn[1], 0);
    this.painter.draw(this.image, this.head.pose(this.state), this.state.camera, view, this.look);
    this.canvas.getContext("2d").putImageData(this.image, 0, 0);
  }

  #listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      canvas.setPointerCapture(event.pointerId);
      this.held = [event.clientX, event.clientY];
    });
    canvas.addEventListener("pointermove", ({ clientX, clientY }) => {
      if (!this.held) return;
      const [x, y] = this.held;
      this.held = [clientX, clientY];
      this.#rotate((clientX - x) * DEGREES_PER_PIXEL, (clientY - y) * DEGREES_PER_PIXEL);
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (this.held = null));
    canvas.addEventListener("dblclick", () => this.set({ turn: FRONT }));
    canvas.addEventListener("keydown", (event) => {
      if (event.key in KEYS) this.#rotate(...KEYS[event.key].map((way) => way * KEY_DEGREES));
      else if (event.key === "Home" || event.key === "Escape") this.set({ turn: FRONT });
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
  }

  #rotate(sideways, down) {
    const yaw = ((this.turn[0] + sideways + 540) % 360) - 180;
    this.set({ turn: [yaw, clamp(this.turn[1] + down, -89, 89)] });
  }
}
