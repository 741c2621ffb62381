// All that the node shows: the head above, presets and switches, the sliders in groups.

import { Slider } from "./slider.js";
import {
  GROUPS,
  PRESETS,
  fromText,
  isSymmetric,
  makeSymmetric,
  presetOf,
  read,
  toText,
  withPreset,
  write,
} from "./sliders.js";
import { View } from "./view.js";

const STYLE = new URL("style.css", import.meta.url).href;

export class Panel {
  // `t` translates; `onInput()` is called at every change of the text, `onCommit()` once it has come to rest.
  constructor({ t, onInput, onCommit }) {
    Object.assign(this, { t, onInput, onCommit });
    this.text = "{}";
    this.values = {};
    this.base = null;
    this.adding = false;
    this.mirroring = true; // whether it is wished for; sides that differ are shown apart all the same
    this.element = create("div", "afd-editor");
    // here and not in the document's head, which belongs to the host
    this.element.append(Object.assign(create("link"), { rel: "stylesheet", href: STYLE }));
    this.view = new View(t("3D head: drag or use the arrow keys to turn it, double-click for the front"));
    this.note = create("p", "afd-note");
    this.note.setAttribute("role", "status");
    this.view.element.append(this.note);
    this.list = create("div", "afd-list");
    this.list.dataset.captureWheel = "true"; // the wheel scrolls here and doesn't zoom the graph
    this.list.addEventListener("scroll", () => (this.scroll = this.list.scrollTop));
    const frame = create("div", "afd-frame");
    frame.append(this.list);
    const controls = create("div", "afd-controls");
    controls.append(this.#toolbar(), frame);
    this.element.append(this.view.element, controls);
    // What happens here is none of the graph's business: it would drag the node.
    this.element.addEventListener("pointerdown", (event) => event.button === 0 && event.stopPropagation());
    this.#build();
  }

  // The JSON that the graph stores.
  get value() {
    return this.text;
  }

  set value(text) {
    if (text === this.text) return; // the new node renderer gives back what it was told
    this.text = String(text ?? "{}");
    const values = fromText(this.text);
    this.values = values ?? {};
    this.note.textContent = values ? "" : this.t("This input is no JSON object of numbers; moving a slider starts anew.");
    this.#build();
  }

  set head(head) {
    this.loaded = head;
    this.#refresh();
  }

  // The frame that is edited (see nodes/editor.py), or null for the neutral head.
  set frame(base) {
    this.base = base;
    this.#refresh();
  }

  // While added to other parameters, sliders can also take away.
  set takesAway(adding) {
    if (adding === this.adding) return;
    this.adding = adding;
    for (const { slider, target } of this.sliders) slider.limit(this.#least(target));
  }

  // What is worth keeping when the node is made anew, as the front-end does when it undoes.
  get looks() {
    const closed = [...this.list.children].map((group) => !group.open);
    const { turn, look } = this.view;
    return { mirroring: this.mirroring, closed, scroll: this.scroll, turn, look };
  }

  set looks({ mirroring, closed, scroll, turn, look }) {
    this.mirroring = mirroring;
    this.#build();
    [...this.list.children].forEach((group, i) => (group.open = !closed[i]));
    requestAnimationFrame(() => (this.list.scrollTop = scroll ?? 0));
    this.view.set({ turn, look });
    this.#showSwitches();
  }

  #toolbar() {
    const { t } = this;
    const bar = create("div", "afd-bar");
    this.presets = create("select");
    this.presets.setAttribute("aria-label", t("Preset"));
    this.presets.append(new Option(t("Custom"), "", true, true));
    this.presets.options[0].hidden = true;
    for (const name of Object.keys(PRESETS)) this.presets.append(new Option(t(name), name));
    this.presets.addEventListener("change", () => this.#replace(withPreset(this.values, this.presets.value)));
    const mirror = t("Mirror: one slider moves the left and the right side");
    this.link = this.#button("pi-link", mirror, () => this.#mirror());
    this.normals = this.#button("pi-palette", t("Show the surface normals, as Render Normals draws them"), () => {
      this.view.set({ look: this.view.look === "normals" ? "shaded" : "normals" });
      this.#showSwitches();
    });
    const reset = this.#button("pi-refresh", t("Reset all sliders"), () => this.#replace({}));
    bar.append(this.presets, this.link, this.normals, reset);
    return bar;
  }

  #button(icon, label, onClick) {
    const button = create("button");
    button.type = "button";
    button.title = label;
    button.setAttribute("aria-label", label);
    button.append(create("i", `pi ${icon}`));
    button.addEventListener("click", onClick);
    return button;
  }

  #showSwitches() {
    this.link.setAttribute("aria-pressed", this.mirrored);
    this.normals.setAttribute("aria-pressed", this.view.look === "normals");
  }

  #mirror() {
    this.mirroring = !this.mirrored;
    const values = { ...this.values };
    if (this.mirroring) makeSymmetric(values);
    this.#replace(values);
  }

  #replace(values) {
    this.values = values;
    this.#build();
    this.#changed();
    this.onCommit();
  }

  // Show the values; sides that differ get a slider each.
  #build() {
    const mirrored = this.mirroring && isSymmetric(this.values);
    if (mirrored !== this.mirrored) this.#buildList(mirrored);
    this.#showSwitches();
    this.#refresh();
  }

  #buildList(mirrored) {
    this.mirrored = mirrored;
    const closed = this.list.childElementCount ? this.looks.closed : GROUPS.map((group) => Boolean(group.closed));
    this.sliders = [];
    this.list.replaceChildren(...GROUPS.map((group, i) => this.#group(group, !closed[i])));
  }

  #group({ label, rows }, open) {
    const group = create("details");
    group.open = open;
    group.append(create("summary", "", this.t(label)));
    const inner = create("div", "afd-group");
    inner.setAttribute("role", "group");
    inner.setAttribute("aria-label", this.t(label));
    inner.append(...rows.map((row) => this.#row(row)));
    group.append(inner);
    return group;
  }

  #row({ label, targets }) {
    if (targets.length === 1 || this.mirrored) return this.#slider(this.t(label), targets);
    const both = create("div", "afd-pair");
    both.append(...targets.map((target) => this.#slider(`${this.t(label)} ${this.t(target.side)}`, [target])));
    return both;
  }

  #slider(label, targets) {
    const [target] = targets;
    const name = targets.flatMap(({ plus, minus }) => (minus ? [plus, minus] : [plus])).join(" ");
    const onInput = (value) => {
      for (const each of targets) write(this.values, each, value);
      this.#changed();
    };
    const slider = new Slider({ ...target, min: this.#least(target), label, name, onInput, onCommit: this.onCommit });
    this.sliders.push({ slider, target });
    return slider.element;
  }

  #least({ min, minus, unit }) {
    const expression = min === 0 && !minus && !unit;
    return expression && this.adding ? -1 : min;
  }

  #changed() {
    this.text = toText(this.values);
    this.note.textContent = "";
    this.#refresh();
    this.onInput();
  }

  #refresh() {
    for (const { slider, target } of this.sliders) slider.show(read(this.values, target));
    this.presets.value = presetOf(this.values);
    for (const group of this.list.children)
      group.classList.toggle("afd-used", Boolean(group.querySelector(".afd-set")));
    if (this.loaded) this.view.show(this.loaded, this.loaded.edit(this.values, this.base));
  }
}

function create(tag, className = "", text = "") {
  return Object.assign(document.createElement(tag), { className, textContent: text });
}
