// The little Markdown that models write, as elements. No HTML, no links, no images.

import { copyButton, make } from "./dom.js";

const FENCE = /^\s*```/;
const HEADING = /^#{1,6}\s+/;
const BULLET = /^\s*[-*]\s+/;
const NUMBER = /^\s*\d+[.)]\s+/;

export function rendered(text) {
  const fragment = document.createDocumentFragment();
  const lines = text.split("\n");
  while (lines.length) fragment.append(...block(lines));
  return fragment;
}

function block(lines) {
  const line = lines[0];
  if (!line.trim()) return lines.shift(), [];
  if (FENCE.test(line)) return [code(lines)];
  if (HEADING.test(line)) return [make("p", {}, make("strong", {}, ...spans(lines.shift().replace(HEADING, ""))))];
  for (const [tag, mark] of [["ul", BULLET], ["ol", NUMBER]]) {
    if (mark.test(line)) return [list(tag, mark, lines)];
  }
  const own = [lines.shift()];
  while (lines.length && lines[0].trim() && ![FENCE, HEADING, BULLET, NUMBER].some((mark) => mark.test(lines[0]))) {
    own.push(lines.shift());
  }
  return [make("p", {}, ...spans(own.join("\n")))];
}

function code(lines) {
  lines.shift();
  const end = lines.findIndex((line) => FENCE.test(line));
  const own = lines.splice(0, end < 0 ? lines.length : end + 1);
  const text = (end < 0 ? own : own.slice(0, -1)).join("\n");
  const pre = make("pre", { tabIndex: 0 }, make("code", { textContent: text }));
  return make("div", { className: "block" }, pre, copyButton("the code", () => text));
}

function list(tag, mark, lines) {
  const start = parseInt(lines[0], 10);
  const items = [];
  while (lines.length && mark.test(lines[0])) {
    items.push(make("li", {}, ...spans(lines.shift().replace(mark, ""))));
  }
  return make(tag, tag === "ol" ? { start } : {}, ...items);
}

function spans(text) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).map((part) => {
    if (/^`[^`]+`$/.test(part)) return make("code", { textContent: part.slice(1, -1) });
    if (/^\*\*[^*]+\*\*$/.test(part)) return make("strong", { textContent: part.slice(2, -2) });
    return part;
  });
}
