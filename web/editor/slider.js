// One slider: a bar with its name and number on it, as the front-end draws its own.

import { clamp } from "./head.js";

const KEYS = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 };

export class Slider {
  // `onInput(value)` is called while the slider moves, `onCommit()` when it has come to rest.
  constructor({ label, name, min, max, step, rest, unit, onInput, onCommit }) {
    Object.assign(this, { label, min, max, step, rest, unit, onInput, onCommit, value: rest });
    this.element = document.createElement("div");
    this.element.className = "afd-slider";
    this.element.tabIndex = 0;
    this.element.title = `${label} · ${name}`;
    this.element.dataset.name = name;
    this.element.innerHTML = `<i></i><span></span><output></output>`;
    [this.fill, this.caption, this.number] = this.element.children;
    this.caption.textContent = label;
    this.element.setAttribute("role", "slider");
    this.element.setAttribute("aria-label", label);
    this.limit(min);
    this.element.addEventListener("pointerdown", (event) => this.#press(event));
    this.element.addEventListener("pointermove", (event) => this.#drag(event));
    this.element.addEventListener("keydown", (event) => this.#key(event));
    this.element.addEventListener("dblclick", () => this.#move(this.rest, true));
    for (const end of ["pointerup", "pointercancel"]) this.element.addEventListener(end, () => this.#release());
  }

  limit(min) {
    this.min = min;
    this.element.setAttribute("aria-valuemin", min);
    this.element.setAttribute("aria-valuemax", this.max);
    this.show(this.value);
  }

  show(value) {
    this.value = value;
    const part = (number) => clamp((number - this.min) / (this.max - this.min), 0, 1) * 100;
    const [from, to] = [part(this.rest), part(value)].sort((a, b) => a - b);
    this.fill.style.left = `${from}%`;
    this.fill.style.width = `${to - from}%`;
    const text = value.toFixed(this.step < 0.1 ? 2 : 1) + this.unit;
    this.number.textContent = text;
    this.element.setAttribute("aria-valuenow", value);
    this.element.setAttribute("aria-valuetext", text);
    this.element.classList.toggle("afd-set", value !== this.rest);
  }

  #move(value, commit) {
    const stepped = Math.round(clamp(value, this.min, this.max) / this.step) * this.step;
    this.show(Number(stepped.toFixed(2)));
    this.onInput(this.value);
    if (commit) this.onCommit();
  }

  #press(event) {
    if (event.button !== 0 || event.target.matches("input")) return;
    this.element.setPointerCapture(event.pointerId);
    this.pressed = true;
    this.#drag(event);
  }

  #drag({ clientX }) {
    if (!this.pressed) return;
    const { left, width } = this.element.getBoundingClientRect();
    this.#move(this.min + ((clientX - left) / width) * (this.max - this.min), false);
  }

  #release() {
    if (this.pressed) this.onCommit();
    this.pressed = false;
  }

  #key(event) {
    if (event.target !== this.element || event.ctrlKey || event.metaKey || event.altKey) return;
    const { key } = event;
    if (key in KEYS) this.#move(this.value + KEYS[key] * this.step * (event.shiftKey ? 10 : 1), true);
    else if (key === "Home") this.#move(this.min, true);
    else if (key === "End") this.#move(this.max, true);
    else if (["Escape", "Delete", "Backspace"].includes(key)) this.#move(this.rest, true);
    else if (key === "Enter" || /^[\d.-]$/.test(key)) this.#type(key === "Enter" ? String(this.value) : key);
    else return;
    event.preventDefault();
    event.stopPropagation(); // or the front-end would delete the node, or leave a subgraph
  }

  // A number is typed in place of the shown one.
  #type(start) {
    const input = Object.assign(document.createElement("input"), { value: start, inputMode: "decimal" });
    input.setAttribute("aria-label", this.label);
    let taken = true;
    input.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Escape") taken = false;
      if (event.key === "Enter" || event.key === "Escape") this.element.focus();
    });
    input.addEventListener("blur", () => {
      const value = Number(input.value.replace(",", "."));
      this.number.hidden = false;
      queueMicrotask(() => input.remove()); // not while it is losing the focus
      if (taken && input.value.trim() && Number.isFinite(value)) this.#move(value, true);
    });
    this.number.hidden = true;
    this.element.append(input);
    input.focus();
    if (start === String(this.value)) input.select();
  }
}
