// Elements of the panel.

export function create(tag, className = "", text = "") {
  return Object.assign(document.createElement(tag), { className, textContent: text });
}

export function button(icon, label, onClick) {
  const made = Object.assign(create("button"), { type: "button", title: label });
  made.setAttribute("aria-label", label);
  made.append(create("i", `pi ${icon}`));
  made.addEventListener("click", onClick);
  return made;
}
