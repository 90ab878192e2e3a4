// Who is here, in #people and #count, and who is typing, in #typing.

const LIMIT = 100; // people in the list
const list = document.getElementById("people");
const counter = document.getElementById("count");
const line = document.getElementById("typing");

/** How light a colour is, from 0 to 1: WCAG's relative luminance. In contrast, 0.18 is halfway from black to white. */
function luminance(color) {
  const [red, green, blue] = [1, 3, 5].map((at) => (parseInt(color.slice(at, at + 2), 16) / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

/** Gives a name the colour that its owner has chosen, if it is one. */
export function paint(name, color) {
  if (typeof color !== "string" || !/^#[0-9a-f]{6}$/i.test(color)) return;
  name.style.color = color;
  name.classList.toggle("light", luminance(color) > 0.2); // the stylesheet sees to the contrast
  name.classList.toggle("dark", luminance(color) < 0.16);
}

/** A name, which may be in a script that is written from right to left. */
function named(name) {
  const node = document.createElement("bdi");
  node.textContent = name; // never as HTML: it comes from strangers
  return node;
}

function person(member, own) {
  const item = document.createElement("li");
  const name = named(member.name);
  name.className = "user";
  paint(name, member.color);
  item.append(name);
  if (member.id === own) item.append(" (you)");
  return item;
}

function showTyping(names) {
  const [first, second, ...others] = names.map(named);
  const parts = [];
  if (others.length) parts.push(first, ", ", second, ` and ${others.length} more are typing…`);
  else if (second) parts.push(first, " and ", second, " are typing…");
  else if (first) parts.push(first, " is typing…");
  // A screen reader speaks up only for news.
  if (parts.map((part) => part.textContent ?? part).join("") !== line.textContent) line.replaceChildren(...parts);
}

/** Shows the members of the channel; `own` is the id of the visitor who looks at the page. */
export function showPeople(members, count, own) {
  const sorted = members.toSorted((a, b) => (b.id === own) - (a.id === own) || a.name.localeCompare(b.name));
  const items = sorted.slice(0, LIMIT).map((member) => person(member, own));
  if (count > items.length) {
    const more = document.createElement("li");
    more.textContent = `and ${count - items.length} more`;
    items.push(more);
  }
  list.replaceChildren(...items);
  counter.textContent = `${count} here`;
  showTyping(sorted.filter((member) => member.typing && member.id !== own).map((member) => member.name));
}
