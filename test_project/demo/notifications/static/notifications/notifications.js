// The badge and the toasts of notifications.

import { avatar, element } from "../demo/ui.js";

const SHOWN = "notification"; // the last one that a toast has shown, in this tab
const DURATION = 8_000; // ms

const toasts = document.getElementById("toasts");

export function showUnread(count) {
  const badge = document.getElementById("unread");
  if (!badge) return;
  badge.hidden = count === 0;
  badge.firstChild.textContent = count;
}

/** Has the server make the badge and, where it is, the list anew. */
export async function refresh() {
  const answer = await fetch(location.href);
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const id of ["unread", "notifications"]) document.getElementById(id)?.replaceWith(page.getElementById(id));
}

/** Shows a notification until it is dismissed, or for some seconds in which nobody points at it. */
export function toast({ id, by, text, url }) {
  // A page gets what was published shortly before it was made, which the page before has shown.
  if (id <= Number(sessionStorage.getItem(SHOWN))) return;
  sessionStorage.setItem(SHOWN, id);
  const close = element("button", { className: "plain", type: "button", ariaLabel: "Dismiss", textContent: "×" });
  const made = element("div", { className: "toast" }, avatar(by), element("a", { href: url }, `${by.name} ${text}`), close);
  close.addEventListener("click", () => made.remove());
  const end = () => {
    if (made.matches(":hover, :focus-within")) setTimeout(end, DURATION);
    else made.remove();
  };
  setTimeout(end, DURATION);
  toasts.append(made);
}
