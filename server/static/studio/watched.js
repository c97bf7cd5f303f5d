// The one state of a page, watched: whoever changes it does so inside `change`, and everything is drawn again.

export function watched(state) {
  const listeners = new Set();
  let due = false;
  return {
    subscribe(listener) { listeners.add(listener); },
    change(mutate) {
      mutate(state);
      if (due) return;
      due = true;
      queueMicrotask(() => {
        due = false;
        for (const listener of listeners) listener();
      });
    },
  };
}
