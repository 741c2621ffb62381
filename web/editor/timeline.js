// The row of keyframes: where in time the sliders are, and how what they say goes on from there.

import { button, create } from "./elements.js";
import { clamp } from "./head.js";
import { EASINGS, LAST_FRAME, keyBefore } from "./keyframes.js";

const SHORTEST = 48; // frames that the bar reaches over
const AHEAD = 24; // frames behind the last keyframe
const RATE = 24; // frames a second, while they are played

let lists = 0;

export class Timeline {
  // `onMove(frame)` is called when another frame is wished for, `onKey()` when the keyframe here shall be there or not,
  // `onEase(easing)` when it shall go on otherwise.
  constructor({ t, onMove, onKey, onEase }) {
    Object.assign(this, { t, onMove });
    this.element = create("div", "afd-bar afd-timeline");
    this.play = button("pi-play", t("Play the keyframes"), () => this.#play());
    this.key = button("pi-key", t("A keyframe at this frame: moving a slider sets one"), onKey);
    this.marks = Object.assign(create("datalist"), { id: `afd-keys-${lists++}` });
    this.bar = Object.assign(create("input"), { type: "range", min: 0, ariaLabel: t("Frame") });
    this.bar.setAttribute("list", this.marks.id);
    this.number = Object.assign(create("input"), { type: "number", min: 0, max: LAST_FRAME, ariaLabel: t("Frame number") });
    this.easing = create("select");
    this.easing.setAttribute("aria-label", t("How it goes on to the next keyframe"));
    for (const name of Object.keys(EASINGS)) this.easing.append(new Option(t(name), name));
    for (const each of [this.bar, this.number]) each.addEventListener("input", (event) => this.#dial(each, event));
    this.easing.addEventListener("change", () => onEase(this.easing.value));
    // keys that are typed here are none of the graph's, undoing is
    this.element.addEventListener("keydown", (event) => event.ctrlKey || event.metaKey || event.stopPropagation());
    this.element.append(this.play, this.key, this.bar, this.marks, this.number, this.easing);
  }

  show(keys, frame) {
    const last = keys.at(-1).frame;
    const here = keyBefore(keys, frame);
    this.last = last;
    this.frame = frame;
    this.bar.max = Math.max(SHORTEST, last + AHEAD, frame);
    this.bar.value = frame;
    if (document.activeElement !== this.number || Number(this.number.value) !== frame) this.number.value = frame;
    this.marks.replaceChildren(...keys.map((key) => new Option("", key.frame)));
    this.key.setAttribute("aria-pressed", here?.frame === frame);
    this.key.disabled = here?.frame === frame && keys.length === 1;
    this.easing.value = (here ?? keys[0]).easing;
    this.easing.disabled = keys.length === 1;
    this.play.disabled = !last;
    if (!last) this.#stop();
  }

  // The browser's own undoing reaches fields that are not in focus any more; the graph's is meant.
  #dial(field, { inputType }) {
    if (inputType?.startsWith("history")) field.value = this.frame;
    else if (field.value) this.#move(clamp(Math.round(Number(field.value)), 0, LAST_FRAME));
  }

  #move(frame) {
    this.#stop();
    this.onMove(frame);
  }

  #play() {
    if (this.playing) return this.#stop();
    const [began, from] = [performance.now(), this.frame % (this.last + 1)];
    const next = (now) => {
      if (!this.element.isConnected) return this.#stop();
      this.playing = requestAnimationFrame(next);
      const frame = (from + Math.max(0, Math.floor(((now - began) * RATE) / 1000))) % (this.last + 1);
      if (frame !== this.frame) this.onMove(frame);
    };
    this.playing = requestAnimationFrame(next);
    this.play.setAttribute("aria-pressed", true);
  }

  #stop() {
    cancelAnimationFrame(this.playing);
    this.playing = undefined;
    this.play.setAttribute("aria-pressed", false);
  }
}
