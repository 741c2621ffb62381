// The choice of presets, ours and the user's, with buttons that save what is dialed and forget it again.

import { button, create } from "./elements.js";
import { onSaved, save, saved } from "./saved.js";
import { PRESETS, expressionOf, same, withPreset } from "./sliders.js";

const LONGEST = 60; // characters of a name

export class Presets {
  // `onChoose(values)` is called with all values once one is chosen, `onError(error)` if the host keeps none.
  constructor({ t, onChoose, onError }) {
    Object.assign(this, { t, onError, values: {}, own: {} });
    this.choice = create("select");
    this.choice.setAttribute("aria-label", t("Preset"));
    this.choice.addEventListener("change", () => onChoose(withPreset(this.values, this.#all().get(this.choice.value))));
    this.name = Object.assign(create("input"), { hidden: true, maxLength: LONGEST, ariaLabel: t("Name of the preset") });
    this.name.placeholder = t("Name of the preset");
    this.name.addEventListener("keydown", (event) => this.#type(event));
    this.name.addEventListener("blur", () => this.#ask(false));
    this.save = button("pi-save", t("Save this expression as a preset"), () => this.#ask(true));
    this.forget = button("pi-trash", t("Forget this preset"), () => this.#store(this.#named(), null));
    this.elements = [this.choice, this.name, this.save, this.forget];
    this.#list();
    this.close = onSaved(() => this.#load());
    this.#load();
  }

  async #load() {
    try {
      this.own = await saved();
    } catch (error) {
      this.onError(error);
    }
    this.#list();
  }

  show(values) {
    this.values = values;
    const chosen = [...this.#all()].find(([, preset]) => same(withPreset(values, preset), values));
    this.choice.value = chosen?.[0] ?? "";
    this.forget.disabled = !this.#named();
  }

  // By the value of their options: those of the user's are told apart by a sign before it.
  #all() {
    const own = Object.entries(this.own).map(([name, values]) => [`/${name}`, values]);
    return new Map([...own, ...Object.entries(PRESETS)]);
  }

  #named() {
    const { value } = this.choice;
    return value.startsWith("/") ? value.slice(1) : "";
  }

  #list() {
    const custom = new Option(this.t("Custom"), "", true, true);
    custom.hidden = true;
    const ours = Object.keys(PRESETS).map((name) => new Option(this.t(name), name));
    const group = Object.assign(create("optgroup"), { label: this.t("Saved") });
    const names = Object.keys(this.own).sort((a, b) => a.localeCompare(b));
    group.append(...names.map((name) => new Option(name, `/${name}`)));
    this.choice.replaceChildren(custom, ...ours, ...(names.length ? [group] : []));
    this.show(this.values);
  }

  #ask(asking) {
    this.name.hidden = !asking;
    this.choice.hidden = asking;
    if (!asking) return;
    this.name.value = this.#named();
    this.name.focus();
    this.name.select();
  }

  #type(event) {
    event.stopPropagation();
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.preventDefault(); // Enter would press the button that gets the focus
    const name = this.name.value.trim();
    if (event.key === "Enter" && name) this.#store(name, expressionOf(this.values));
    this.save.focus();
  }

  async #store(name, values) {
    try {
      await save(name, values);
    } catch (error) {
      this.onError(error);
    }
  }
}
