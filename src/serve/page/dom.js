// Makes elements from nodes and text alone: what a model writes can be nothing but text.

/** The element with an id. */
export const byId = (id) => document.getElementById(id);

/** An element; attributes whose value is null or false are left out, functions are listeners. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === 'function') made.addEventListener(name, value);
    else made.setAttribute(name, value === true ? '' : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Says something to screen readers. */
export function announce(text) {
  byId('status').textContent = text;
}

/** Asks yes or no; resolves to whether it was yes. */
export function ask(text, yes) {
  const dialog = byId('ask');
  byId('ask-text').textContent = text;
  byId('ask-yes').textContent = yes;
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), {once: true});
  });
}

/** Lets arrow keys, Home and End go through a group of buttons, of which one is in the tab order. */
export function rove(group, selector, chosen) {
  group.addEventListener('keydown', (event) => {
    const all = [...group.querySelectorAll(selector)];
    const at = all.indexOf(document.activeElement);
    if (at < 0) return;
    const to = {ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1,
                Home: 0, End: all.length - 1}[event.key];
    if (to === undefined || !all[to]) return;
    event.preventDefault();
    all[to].focus();
    chosen(all[to]);
  });
}

/** Offers a text as a file. */
export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
  element('a', {href: url, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
