"use strict";
// How scripts make elements. Names come from files and people: they only ever become text, never HTML.

/** An element with attributes and children; strings become text. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** A name in its own direction, whatever stands around it. */
function named(text) {
  return element("bdi", { class: "named" }, text);
}

/** A number of videos in words. */
function videosOf(count) {
  return `${count.toLocaleString("en")} video${count === 1 ? "" : "s"}`;
}
