// Cards of a list that are dragged to another place: with the mouse, a pen, or a finger that rests
// first. Pointer events, because Firefox does not drag what has a button in it.

const START_DISTANCE = 5; // pixels
const REST_MILLISECONDS = 320;

/** Calls `move(card, place)` with the place that a card of a list was dragged to. */
export class Ordering {
  #list;
  #move;
  #drag = null; // {card, pointerId, x, y, isMoving, gap}
  #rest = 0;

  constructor(list, move) {
    this.#list = list;
    this.#move = move;
    list.addEventListener("pointerdown", (event) => this.#press(event));
    list.addEventListener("pointermove", (event) => this.#follow(event));
    list.addEventListener("pointerup", () => this.#end(true));
    list.addEventListener("pointercancel", () => this.#end(false));
    list.addEventListener("keydown", ({ key }) => key === "Escape" && this.#end(false));
    const hold = (event) => this.#drag?.isMoving && event.preventDefault();
    list.addEventListener("touchmove", hold, { passive: false }); // else it scrolls
    list.addEventListener("contextmenu", hold);
  }

  #press({ button, target, clientX, clientY, pointerId, pointerType }) {
    const card = target.closest("li");
    this.#end(false);
    if (button !== 0 || !card || !target.closest(".pictures-show")) return;
    const isTouch = pointerType === "touch";
    this.#drag = { card, pointerId, x: clientX, y: clientY, isTouch, isMoving: false, gap: -1 };
    if (isTouch) this.#rest = setTimeout(() => this.#start(), REST_MILLISECONDS);
  }

  #start() {
    this.#drag.isMoving = true;
    this.#drag.card.classList.add("pictures-dragged");
    // The card gets what follows, the click too: the button in it is not pressed.
    this.#drag.card.setPointerCapture(this.#drag.pointerId);
  }

  #follow({ clientX, clientY }) {
    const drag = this.#drag;
    if (!drag) return;
    const [x, y] = [clientX - drag.x, clientY - drag.y];
    const isFar = Math.hypot(x, y) > START_DISTANCE;
    if (!drag.isMoving && isFar && drag.isTouch) return this.#end(false); // It scrolls.
    if (!drag.isMoving && isFar) this.#start();
    if (!drag.isMoving) return;
    drag.card.style.transform = `translate(${x}px, ${y}px)`;
    this.#aim(clientX, clientY);
  }

  #aim(x, y) {
    const cards = [...this.#list.children];
    const place = cards.findIndex((card) => card !== this.#drag.card && isIn(card, x, y));
    if (place < 0) return;
    const { left, width } = cards[place].getBoundingClientRect();
    const side = x < left + width / 2 ? "before" : "after";
    this.#drag.gap = place + (side === "after" ? 1 : 0);
    this.#mark(cards[place], side);
  }

  #mark(card, side) {
    for (const other of this.#list.children) delete other.dataset.drop;
    if (card) card.dataset.drop = side;
  }

  #end(isDone) {
    const drag = this.#drag;
    clearTimeout(this.#rest);
    this.#drag = null;
    if (!drag?.isMoving) return;
    this.#mark(null);
    drag.card.classList.remove("pictures-dragged");
    drag.card.style.transform = "";
    const from = [...this.#list.children].indexOf(drag.card);
    if (isDone && drag.gap >= 0) this.#move(drag.card, drag.gap > from ? drag.gap - 1 : drag.gap);
  }
}

function isIn(card, x, y) {
  const { left, right, top, bottom } = card.getBoundingClientRect();
  return x >= left && x <= right && y >= top && y <= bottom;
}
