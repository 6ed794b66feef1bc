// A board that can be typed into, with one stop for the Tab key; arrows move within.

import { classOf, nameOf } from "./boards.js";
import { make } from "./dom.js";

export class Grid {
  // Calls `typed` with the whole board after each change.
  constructor(place, typed) {
    this.place = place;
    this.typed = typed;
  }

  open(task, text) {
    this.task = task;
    this.given = text;
    this.letters = [...text];
    this.place.className = task.letters.includes("#") ? "maze" : "";
    this.place.style.setProperty("--columns", task.width);
    this.cells = this.letters.map((_, index) => this.cell(index));
    this.place.replaceChildren(...this.cells);
    this.cells[0].tabIndex = 0;
    this.show(text);
  }

  cell(index) {
    const { task } = this;
    const [row, column] = [Math.floor(index / task.width), index % task.width];
    const cell = make("input", { tabIndex: -1, maxLength: 1, autocomplete: "off" });
    cell.inputMode = task.letters.includes("#") ? "text" : "numeric";
    cell.dataset.lines = [
      column % task.wide === task.wide - 1 && column < task.width - 1 ? "right" : "",
      row % task.high === task.high - 1 && row < task.width - 1 ? "below" : "",
    ].join(" ");
    cell.addEventListener("focus", () => {
      for (const one of this.cells) one.tabIndex = one === cell ? 0 : -1;
      cell.select();
    });
    cell.addEventListener("keydown", (event) => this.key(event, index));
    cell.addEventListener("input", () => this.type(index, cell.value.at(-1) ?? this.task.empty));
    return cell;
  }

  key(event, index) {
    const { width } = this.task;
    const column = index % width;
    const moves = {
      ArrowLeft: column > 0 ? -1 : 0,
      ArrowRight: column < width - 1 ? 1 : 0,
      ArrowUp: -width,
      ArrowDown: width,
      Home: -column,
      End: width - 1 - column,
    };
    if (event.key in moves) {
      event.preventDefault();
      this.cells[index + moves[event.key]]?.focus();
    } else if ([" ", "Delete", "Backspace"].includes(event.key)) {
      event.preventDefault();
      this.type(index, this.task.empty);
    }
  }

  type(index, letter) {
    const upper = letter.toUpperCase();
    if (upper === this.task.empty || this.task.letters.includes(upper)) {
      const text = [...this.given];
      text[index] = upper;
      this.given = text.join("");
      this.show(this.given);
      this.typed(this.given);
    } else {
      this.show(this.given);
    }
    this.cells[index].select();
  }

  // Draw a board; what differs from `before` is coloured.
  show(text, before = text) {
    const { task } = this;
    this.cells.forEach((cell, index) => {
      const letter = text[index];
      const changed = letter !== before[index] ? "changed" : "";
      cell.value = letter === task.empty ? "" : letter;
      cell.className = `cell ${cell.dataset.lines} ${changed} ${classOf(task, letter, this.given[index])}`;
      const row = Math.floor(index / task.width) + 1;
      cell.ariaLabel = `row ${row}, column ${(index % task.width) + 1}: ${nameOf(task, letter)}`;
    });
  }
}
