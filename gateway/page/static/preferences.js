// Choices of the reader that this browser keeps, if it may keep anything.

/** Returns what was chosen, or null. */
export function preference(name) {
  try {
    return localStorage.getItem(`internvl-${name}`);
  } catch {
    return null; // site data are blocked
  }
}

/** Keeps a choice; null forgets it. */
export function prefer(name, value) {
  try {
    if (value === null) localStorage.removeItem(`internvl-${name}`);
    else localStorage.setItem(`internvl-${name}`, value);
  } catch {
    // It lasts until the page is closed.
  }
}
