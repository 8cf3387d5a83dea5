/* The tab's pickers: a text box with a LoRA's name becomes a list to search in. Also the buttons of
   recent merges, and the shortcuts. For the WebUI (which loads this file by itself) and for
   `python -m lib_ziplora serve`. */
(function() {
    "use strict";
    if (window.ziploraPickers) return;

    const BATCH = 50;
    const INSPECT_MS = 400;
    const GAP = 4;
    const MOST_HEIGHT = 420;
    const STATES = ["unusable", "usable", "pending"];
    let root = null;
    let recalled = "";
    let open = null;
    let loras = {text: null, rows: [], known: false};

    function find(selector) {
        return root ? root.querySelector(selector) : null;
    }

    function press(id) {
        const button = find("#" + id);
        if (button) button.click();
    }

    function seen() {
        return Boolean(root && root.isConnected && root.getClientRects().length);
    }

    // Every LoRA as {name, note, state, low}; parsed again only when the server has sent another list.
    function catalog() {
        const holder = find("#ziplora_catalog [data-loras]");
        const text = holder ? holder.dataset.loras : "[]";
        if (text !== loras.text) {
            const rows = JSON.parse(text).map(([name, note, state]) => ({name, note, state: STATES[state], low: name.toLowerCase()}));
            const known = Boolean(holder) && holder.dataset.known === "1";
            if (loras.known && known) showCards(rows);
            loras = {text, rows, known};
        }
        return loras;
    }

    // LoRAs that were not there before get their cards in the WebUI's panes.
    function showCards(rows) {
        const before = new Set(loras.rows.map((row) => row.name));
        for (const row of rows) if (!before.has(row.name)) window.ziplora.showCard(row.name);
    }

    // Those that have every word, in a list of its own; a name that begins with the words comes first.
    function matching(query) {
        const low = query.trim().toLowerCase();
        const words = low.split(/\s+/).filter(Boolean);
        const found = catalog().rows.filter((row) => words.every((word) => row.low.includes(word)));
        if (!words.length) return found;
        const rank = (row) => (row.low === low ? 0 : row.low.startsWith(low) ? 1 : 2) + (row.state === "unusable" ? 3 : 0);
        return found.map((row) => [rank(row), row]).sort((a, b) => a[0] - b[0]).map((pair) => pair[1]);
    }

    class Picker {
        constructor(box) {
            this.box = box;
            this.input = box.querySelector("input, textarea");
            this.list = document.createElement("ul");
            this.list.className = "ziplora-options";
            this.list.id = box.id + "_options";
            this.list.hidden = true;
            this.list.setAttribute("role", "listbox");
            box.appendChild(this.list);
            this.value = this.input.value;
            this.found = [];
            this.active = -1;
            this.committing = false;
            for (const [name, value] of [["role", "combobox"], ["aria-autocomplete", "list"], ["aria-expanded", "false"],
                ["aria-controls", this.list.id], ["autocomplete", "off"], ["spellcheck", "false"]]) {
                this.input.setAttribute(name, value);
            }
            this.listen();
        }

        listen() {
            // What is typed is a search, and no value yet: the page's own listeners don't learn of it.
            this.box.addEventListener("input", (event) => {
                if (this.committing || event.target !== this.input) return;
                event.stopPropagation();
                this.show(this.input.value);
            }, true);
            this.box.addEventListener("keydown", (event) => this.key(event), true);
            this.input.addEventListener("focus", () => this.begin());
            this.input.addEventListener("click", () => this.begin());
            this.input.addEventListener("blur", () => this.end());
            this.list.addEventListener("mousedown", (event) => {
                event.preventDefault();
                const item = event.target.closest("li[data-index]");
                if (item && event.button === 0) this.choose(this.found[Number(item.dataset.index)]);
            });
            // A label passes its clicks on to the box, which would open the list again.
            this.list.addEventListener("click", (event) => event.preventDefault());
            this.list.addEventListener("scroll", () => {
                if (this.list.scrollTop + 2 * this.list.clientHeight > this.list.scrollHeight) this.more();
            });
        }

        begin() {
            if (open === this) return;
            this.value = this.input.value;
            this.input.select();
            this.show("");
        }

        show(query) {
            if (open && open !== this) open.close();
            open = this;
            this.query = query;
            this.found = matching(query);
            if (!query) this.found.sort((a, b) => (b.name === this.value) - (a.name === this.value));
            this.list.replaceChildren();
            this.list.hidden = false;
            this.input.setAttribute("aria-expanded", "true");
            this.more();
            if (!this.found.length) {
                this.list.appendChild(line("ziplora-none", catalog().known ? "No LoRA has all these words in its name." : "Reading the LoRA folders"));
            }
            this.place();
            this.list.scrollTop = 0;
            this.mark(this.found.length && (query || this.found[0].name === this.value) ? 0 : -1);
        }

        // The same list from what is known by now, with the same place in it.
        update() {
            const active = this.found[this.active];
            const top = this.list.scrollTop;
            this.show(this.query);
            const index = active ? this.found.findIndex((row) => row.name === active.name) : -1;
            if (index >= 0) this.mark(index);
            while (this.list.scrollHeight < top && this.list.children.length < this.found.length) this.more();
            this.list.scrollTop = top;
        }

        more() {
            const from = this.list.children.length;
            const part = document.createDocumentFragment();
            for (const row of this.found.slice(from, from + BATCH)) {
                const item = line("ziplora-" + row.state, row.name);
                item.id = `${this.list.id}_${from + part.children.length}`;
                item.dataset.index = from + part.children.length;
                item.setAttribute("role", "option");
                if (row.name === this.value) item.setAttribute("aria-current", "true");
                if (row.note) item.appendChild(span("ziplora-option-note", row.note));
                if (window.ziploraPictures) window.ziploraPictures.attach(item, row.name);
                part.appendChild(item);
            }
            this.list.appendChild(part);
        }

        // Below the box, or above it where there is more room; fixed, so that no panel cuts it off.
        place() {
            const box = (this.input.closest("label") || this.input).getBoundingClientRect();
            const below = window.innerHeight - box.bottom - 2 * GAP;
            const above = box.top - 2 * GAP;
            const down = below >= Math.min(MOST_HEIGHT, above);
            Object.assign(this.list.style, {
                left: `${box.left}px`,
                width: `${box.width}px`,
                maxHeight: `${Math.min(MOST_HEIGHT, down ? below : above)}px`,
                top: down ? `${box.bottom + GAP}px` : "auto",
                bottom: down ? "auto" : `${window.innerHeight - box.top + GAP}px`,
            });
        }

        mark(index) {
            const before = this.list.children[this.active];
            if (before) before.removeAttribute("aria-selected");
            this.active = index;
            while (index >= this.list.children.length && this.list.children.length < this.found.length) this.more();
            const item = index >= 0 ? this.list.children[index] : null;
            if (item && item.dataset.index) {
                item.setAttribute("aria-selected", "true");
                item.scrollIntoView({block: "nearest"});
                this.input.setAttribute("aria-activedescendant", item.id);
            } else {
                this.input.removeAttribute("aria-activedescendant");
            }
        }

        key(event) {
            if (event.target !== this.input || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
            const shown = open === this;
            const moves = {ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10};
            if (moves[event.key]) {
                if (!shown) this.begin();
                else this.mark(Math.max(0, Math.min(this.found.length - 1, this.active + moves[event.key])));
            } else if (event.key === "Enter") {
                const row = this.found[Math.max(0, this.active)];
                if (shown && row && (this.active >= 0 || this.query)) this.choose(row);
                else if (!shown) this.begin();
            } else if (event.key === "Escape" && shown) {
                this.input.value = this.value;
                this.close();
            } else {
                return;
            }
            event.preventDefault();
            event.stopPropagation();
        }

        choose(row) {
            this.value = row.name;
            this.input.value = row.name;
            this.close();
            this.committing = true;
            this.input.dispatchEvent(new Event("input", {bubbles: true}));
            this.committing = false;
        }

        // A name that was typed in full counts; anything else is taken back.
        end() {
            if (open !== this) return;
            const low = this.input.value.trim().toLowerCase();
            const exact = catalog().rows.find((row) => row.low === low);
            if (exact && exact.name !== this.value) {
                this.choose(exact);
                return;
            }
            this.input.value = this.value;
            this.close();
        }

        close() {
            if (open === this) open = null;
            this.list.hidden = true;
            this.list.replaceChildren();
            this.active = -1;
            this.input.setAttribute("aria-expanded", "false");
            this.input.removeAttribute("aria-activedescendant");
        }
    }

    function span(style, text) {
        const made = document.createElement("span");
        made.className = style;
        made.textContent = text;
        return made;
    }

    function line(style, text) {
        const made = document.createElement("li");
        made.className = style;
        made.appendChild(span("ziplora-option-name", text));
        return made;
    }

    // The server inspects a folder's files bit by bit; it is asked on while somebody looks at the tab.
    function inspectOn() {
        const holder = find("#ziplora_catalog [data-loras]");
        if (open && holder && holder.dataset.loras !== loras.text) open.update();
        catalog();
        if (holder && Number(holder.dataset.pending) > 0) setTimeout(() => seen() && press("ziplora_inspect"), INSPECT_MS);
    }

    function shown(id) {
        const button = find("#ziplora_" + id);
        return button && button.style.display !== "none" && !button.disabled ? button : null;
    }

    // What a shortcut presses, or null. The WebUI has those of a merge itself, for the tab that is seen.
    function pressedBy(event, control) {
        if (event.altKey && !control && event.code === "KeyS" && !event.getModifierState("AltGraph")) {
            return find("#ziplora_swap");
        }
        if (typeof window.requestProgress === "function") return null;
        if (control && event.key === "Enter") return shown("generate");
        if (event.altKey && event.key === "Enter") return shown("skip");
        return event.key === "Escape" && !open ? shown("interrupt") : null;
    }

    // Keys that go to a dialog or to another tab are none of ours.
    function shortcut(event) {
        const own = event.target === document.body || (root && root.contains(event.target));
        if (!own || !seen() || event.isComposing) return;
        const control = event.ctrlKey || event.metaKey;
        const button = pressedBy(event, control);
        // A box that is being written in gives its text to the page first, also when the WebUI does the rest.
        if ((button || (control && event.key === "Enter")) && root.contains(document.activeElement)) {
            document.activeElement.blur();
        }
        if (!button) return;
        event.preventDefault();
        button.click();
    }

    function start() {
        for (const box of root.querySelectorAll(".ziplora-picker")) new Picker(box);
        for (const [id, title] of [["generate", "Ctrl+Enter"], ["skip", "Alt+Enter"], ["interrupt", "Esc"],
            ["swap", "Swap subject and style"]]) {
            const button = find("#ziplora_" + id);
            if (button) button.title = title;
        }
        const swap = find("#ziplora_swap");
        if (swap) swap.setAttribute("aria-keyshortcuts", "Alt+S");
        new MutationObserver(inspectOn).observe(find("#ziplora_catalog"), {childList: true, subtree: true});
        inspectOn();
        root.addEventListener("click", (event) => {
            const button = event.target.closest("[data-recent]");
            if (!button || button.disabled) return;
            recalled = button.dataset.recent;
            press("ziplora_recall");
        });
        document.addEventListener("keydown", shortcut, true);
        for (const moved of ["scroll", "resize"]) {
            window.addEventListener(moved, (event) => {
                if (open && !(event.target instanceof Node && open.list.contains(event.target))) open.place();
            }, true);
        }
    }

    // Fills the form with a job that is found running, unless something is chosen already.
    function recall(job) {
        if (["subject", "style"].some((side) => find(`#ziplora_${side} input, #ziplora_${side} textarea`)?.value)) return;
        recalled = job;
        press("ziplora_recall");
    }

    window.ziploraPickers = {recall, recalled: () => [recalled]};

    const waiting = setInterval(() => {
        const app = typeof window.gradioApp === "function" ? window.gradioApp() : document;
        root = app.querySelector("#ziplora_root");
        const mounted = (side) => find(`#ziplora_${side} input, #ziplora_${side} textarea`);
        if (!root || !["subject", "style", "third", "fourth"].every(mounted) || !find("#ziplora_catalog")) return;
        clearInterval(waiting);
        start();
    }, 100);
})();
