// All that the node shows: head and result above, presets, switches and keyframes, the sliders in groups.

import { button, create } from "./elements.js";
import { fromText, toText, valuesAt, withKey, withoutKey, keyBefore } from "./keyframes.js";
import { Presets } from "./presets.js";
import { Result } from "./result.js";
import { Slider } from "./slider.js";
import { GROUPS, isSymmetric, makeSymmetric, read, write } from "./sliders.js";
import { Timeline } from "./timeline.js";
import { View } from "./view.js";

const STYLE = new URL("style.css", import.meta.url).href;

export class Panel {
  // `t` translates, `queue` runs the workflow; `onInput()` is called at every change of the text, `onCommit()` once it has
  // come to rest.
  constructor({ t, queue, onInput, onCommit }) {
    Object.assign(this, { t, onInput, onCommit });
    this.text = "{}";
    this.keys = fromText(this.text);
    this.frameNumber = 0;
    this.values = {}; // at that frame
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
    const dialed = () => ({ expression: this.text, frame: this.frameNumber });
    this.result = new Result({ t, queue, dialed });
    const shows = create("div", "afd-shows");
    shows.append(this.view.element, this.result.element);
    this.list = create("div", "afd-list");
    this.list.dataset.captureWheel = "true"; // the wheel scrolls here and doesn't zoom the graph
    this.list.addEventListener("scroll", () => (this.scroll = this.list.scrollTop));
    const frame = create("div", "afd-frame");
    frame.append(this.list);
    const controls = create("div", "afd-controls");
    controls.append(this.#toolbar(), this.#timeline(), frame);
    this.element.append(shows, controls);
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
    const keys = fromText(this.text);
    this.keys = keys ?? fromText("{}");
    this.values = valuesAt(this.keys, this.frameNumber);
    this.note.textContent = keys ? "" : this.t("This input is no JSON object of numbers; moving a slider starts anew.");
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
    const { mirroring, scroll, frameNumber } = this;
    return { mirroring, closed, scroll, frameNumber, turn, look };
  }

  set looks({ mirroring, closed, scroll, frameNumber, turn, look }) {
    this.mirroring = mirroring;
    this.#move(frameNumber);
    [...this.list.children].forEach((group, i) => (group.open = !closed[i]));
    requestAnimationFrame(() => (this.list.scrollTop = scroll ?? 0));
    this.view.set({ turn, look });
    this.#showSwitches();
  }

  #toolbar() {
    const { t } = this;
    const bar = create("div", "afd-bar");
    const say = (error) => (this.note.textContent = String(error));
    this.presets = new Presets({ t, onChoose: (values) => this.#replace(values), onError: say });
    const mirror = t("Mirror: one slider moves the left and the right side");
    this.link = button("pi-link", mirror, () => this.#mirror());
    this.normals = button("pi-palette", t("Show the surface normals, as Render Normals draws them"), () => {
      this.view.set({ look: this.view.look === "normals" ? "shaded" : "normals" });
      this.#showSwitches();
    });
    const reset = button("pi-refresh", t("Reset all sliders"), () => this.#replace({}));
    bar.append(...this.presets.elements, this.link, this.normals, reset, this.result.button);
    return bar;
  }

  #timeline() {
    this.timeline = new Timeline({
      t: this.t,
      onMove: (frame) => this.#move(frame),
      onKey: () => {
        const { keys, frameNumber: frame, values } = this;
        this.#keep(keyBefore(keys, frame)?.frame === frame ? withoutKey(keys, frame) : withKey(keys, frame, values));
      },
      onEase: (easing) => {
        const { frame, values } = keyBefore(this.keys, this.frameNumber) ?? this.keys[0];
        this.#keep(withKey(this.keys, frame, values, easing));
      },
    });
    return this.timeline.element;
  }

  // Show another frame.
  #move(frame) {
    this.frameNumber = frame;
    this.values = valuesAt(this.keys, frame);
    this.#build();
    this.result.changed();
  }

  // Have other keyframes.
  #keep(keys) {
    this.keys = keys;
    this.#tell();
    this.#move(this.frameNumber);
    this.onCommit();
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
    this.keys = withKey(this.keys, this.frameNumber, this.values);
    this.#tell();
    this.#refresh();
  }

  #tell() {
    this.text = toText(this.keys);
    this.note.textContent = "";
    this.result.changed();
    this.onInput();
  }

  #refresh() {
    for (const { slider, target } of this.sliders) slider.show(read(this.values, target));
    this.presets.show(this.values);
    this.timeline.show(this.keys, this.frameNumber);
    for (const group of this.list.children)
      group.classList.toggle("afd-used", Boolean(group.querySelector(".afd-set")));
    if (this.loaded) this.view.show(this.loaded, this.loaded.edit(this.values, this.base));
  }

  begin(token, { first_frame: frames = [] }) {
    this.frame = frames[0] ?? null;
    this.result.begin(token);
  }

  end() {
    this.result.end();
  }

  stop() {
    this.result.stop();
  }

  // Take the place of another panel, of the same node before it was made anew.
  succeed(before) {
    this.looks = before.looks;
    this.result.succeed(before.result);
  }

  // The node is gone for good.
  close() {
    this.stop();
    this.presets.close();
  }
}
