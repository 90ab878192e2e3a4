// Elements that several pages make. Text goes into textContent only, since it may come from somebody else.

/** Makes an element; `children` are elements and texts. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Makes the round picture of a person. */
export function avatar({ id, name }) {
  const made = element("span", { className: "avatar", textContent: name[0], ariaHidden: "true" });
  made.dataset.color = id;
  return made;
}
