// The focus: put where an error stands, and never lost when what had it goes away.

let last = null;
let homes = [];

/** Focus the control of a field, also if it is drawn only now. */
export function focusField(field) {
  setTimeout(() => {
    const control = document.querySelector(`[data-field="${CSS.escape(field)}"]`);
    control?.closest("details:not([open])")?.setAttribute("open", "");
    control?.focus();
  });
}

/** Focus the first element that a selector finds, once all is drawn. */
export function focusSoon(selector) {
  setTimeout(() => document.querySelector(selector)?.focus());
}

export function watchFocus() {
  addEventListener("focusin", (event) => {
    last = event.target;
    homes = [];
    for (let at = last.parentElement; at; at = at.parentElement) if (at.hasAttribute("tabindex")) homes.push(at);
  });
}

/** After each drawing: if what had the focus is gone, the nearest place that is still there gets it. */
export function keepFocus() {
  if (document.activeElement !== document.body || !last) return;
  const isGone = !last.isConnected || last.disabled || last.offsetParent === null && getComputedStyle(last).position !== "fixed";
  if (!isGone || last === document.body) return;
  const home = homes.find((one) => one.isConnected && one.offsetParent !== null) ?? document.querySelector("main");
  last = null;
  home?.focus({ preventScroll: true });
}
