/* The tab's side in the browser: follows the job that runs, wherever it was begun. For the WebUI (which
   loads this file by itself) and for `python -m lib_ziplora serve`, where the txt2img tab does not exist. */
(function() {
    "use strict";
    if (window.ziplora) return;

    const JOB_KEY = "ziplora_job";
    const RUNNING_MS = 400;
    const IDLE_MS = 2500;
    const ANSWER_MS = 5000;
    const CHECK_MS = 700;
    const ALIVE = ["queued", "running"];
    const STARTERS = "#ziplora_generate, #ziplora_reexport, #ziplora_matrix_run";
    let job = remembered();     // the one that this page follows
    let begun = "";             // the one that this page has begun
    let kind = "";              // what the one that has ended was asked for
    let revision = null;
    let asked = 0;
    let timer = null;
    let checking = null;

    function find(selector) {
        const app = typeof window.gradioApp === "function" ? window.gradioApp() : document;
        return app.querySelector(selector);
    }

    function press(id) {
        const button = find("#ziplora_" + id);
        if (button) button.click();
    }

    function remember(id) {
        job = id;
        try {
            if (id) localStorage.setItem(JOB_KEY, id);
            else localStorage.removeItem(JOB_KEY);
        } catch (error) {
            console.warn("ZipLoRA: the browser stores nothing, so a reload forgets the merge", error);
        }
    }

    function remembered() {
        try {
            return localStorage.getItem(JOB_KEY) || "";
        } catch (error) {
            return "";
        }
    }

    // The WebUI's shortcuts (Ctrl+Enter, Alt+Enter, Esc) read style.display of these buttons.
    function showRunning(running) {
        for (const [id, shown] of [["generate", !running], ["check", !running], ["interrupt", running], ["skip", running]]) {
            const button = find("#ziplora_" + id);
            if (button) button.style.display = shown ? "block" : "none";
        }
        for (const id of ["reexport", "matrix_run", "compare"]) {
            const button = find("#ziplora_" + id);
            if (button) button.disabled = running;
        }
        find("#ziplora_root").classList.toggle("ziplora-running", running);
    }

    // Looks at what the server has told last, and asks it again: often while a job is alive.
    function tick() {
        clearTimeout(timer);
        look();
        const root = find("#ziplora_root");
        const seen = root && root.getClientRects().length && !document.hidden;
        if (job || seen) press("poll");
        timer = setTimeout(tick, job && seen ? RUNNING_MS : IDLE_MS);
    }

    function look() {
        const bar = find("#ziplora_bar [data-revision]");
        if (!bar || !bar.dataset.revision) return; // nothing was told yet
        const told = bar.dataset;
        if (told.revision !== revision) {
            revision = told.revision;
            press("refresh");
        }
        if (ALIVE.includes(told.state) && (!job || job === told.job)) {
            if (!job) adopt(told.job);
            showRunning(true);
        } else if (job && told.job === job && Date.now() - asked > ANSWER_MS) {
            asked = Date.now();
            kind = told.kind;
            press("outcome");
        }
    }

    // A job that another page or a program has begun; its form is shown where this page has none yet.
    function adopt(id) {
        remember(id);
        if (window.ziploraPickers) window.ziploraPickers.recall(id);
    }

    function submitted(id) {
        if (!id) return [];
        begun = id;
        remember(id);
        showRunning(true);
        tick();
        return [];
    }

    function shown() {
        const wrote = ["MergeRequest", "ReexportRequest"].includes(kind) && find("#ziplora_result [data-outcome=done]");
        const own = begun === job;
        if (wrote) showCard(tag().value.replace(/^<lora:|:.*$/g, ""));
        if (kind === "CompareRequest") previewed();
        asked = 0;
        begun = "";
        remember("");
        showRunning(false);
        const box = find("#ziplora_result");
        if (box && box.scrollIntoView) box.scrollIntoView({block: "nearest"});
        if (wrote && own) press("follow_up");
        return [];
    }

    // Pre-flight belongs to other settings now: repeat it once nothing changes any more.
    function outdated() {
        if (!find("#ziplora_preflight .ziplora-box")) return [];
        markOutdated(true);
        clearTimeout(checking);
        checking = setTimeout(() => {
            checking = null;
            if (!job && find("#ziplora_preflight .ziplora-box")) press("recheck");
        }, CHECK_MS);
        return [];
    }

    // The answer may be the same box as before, which the page then leaves as it is.
    function checked() {
        if (!checking) markOutdated(false);
        return [];
    }

    function markOutdated(old) {
        const place = find("#ziplora_preflight");
        if (!place) return;
        place.classList.toggle("ziplora-outdated", old);
        place.setAttribute("aria-busy", old);
    }

    function tag() {
        return find("#ziplora_tag textarea, #ziplora_tag input");
    }

    function copyTag() {
        const box = tag();
        if (navigator.clipboard && window.isSecureContext) {
            navigator.clipboard.writeText(box.value);
        } else {
            box.select();
            document.execCommand("copy");
        }
        return [];
    }

    // Puts into a prompt what a click on the LoRA's card would, but nothing that is there already.
    function send(tab) {
        const prompt = find(`#${tab}_prompt textarea`);
        if (!prompt) return [];
        const [, lora, words] = tag().value.match(/^(<lora:[^>]*>)?\s*(.*)$/s);
        const parts = [[lora, (lora || "").replace(/[^:]*>$/, "")], [words, words]];
        for (const [part, known] of parts) {
            if (part && !prompt.value.includes(known)) prompt.value = (prompt.value.trimEnd() + " " + part).trimStart();
        }
        window.updateInput(prompt);
        window["switch_to_" + tab]();
        return [];
    }

    // Gives a LoRA its card in the WebUI's panes. The WebUI's own refresh empties its list for a while.
    function showCard(name) {
        for (const tab of ["txt2img", "img2img"]) {
            const pane = find(`#${tab}_lora_cards`);
            if (!pane || typeof window.requestGet !== "function") continue;
            window.requestGet("./sd_extra_networks/get-single-card", {page: "lora", tabname: tab, name}, (data) => {
                if (!data || !data.html) return;
                const holder = document.createElement("div");
                holder.innerHTML = data.html;
                const card = holder.firstElementChild;
                card.style.display = "";
                const old = [...pane.querySelectorAll(".card")].find((other) => other.dataset.name === name);
                if (old) old.replaceWith(card);
                else pane.appendChild(card);
            });
        }
    }

    // The merge that was compared may have a picture on its card now.
    function previewed() {
        for (const place of ["compare_result", "drawn_note"]) {
            const name = find(`#ziplora_${place} b`);
            if (name) showCard(name.textContent);
        }
        return [];
    }

    function confirmed(name) {
        const question = `Delete ${name} and what ZipLoRA has written beside it? This can't be undone.`;
        return name && window.confirm(question) ? name : "";
    }

    // A merge that was deleted or renamed: its card goes, that of its new name comes.
    function changed() {
        const told = find("#ziplora_adjust_about [data-gone]");
        if (!told) return [];
        for (const tab of ["txt2img", "img2img"]) {
            const cards = [...document.querySelectorAll(`#${tab}_lora_cards .card`)];
            cards.filter((card) => card.dataset.name === told.dataset.gone).forEach((card) => card.remove());
        }
        if (told.dataset.now) showCard(told.dataset.now);
        return [];
    }

    function chosenPicture() {
        const thumbnails = [...document.querySelectorAll("#ziplora_compare_gallery .thumbnail-small")];
        return thumbnails.findIndex((thumbnail) => thumbnail.classList.contains("selected"));
    }

    window.ziplora = {submitted, shown, outdated, checked, copyTag, send, showCard, previewed, chosenPicture, confirmed, changed, followed: () => job};

    // gradio 5 and later mount what stands in a closed panel when it is opened for the first time.
    function mountPanels(root) {
        const closed = [...root.querySelectorAll(".gr-accordion > button.label-wrap:not(.open)")]
            .filter((label) => !label.dataset.mounted);
        root.classList.toggle("ziplora-mounting", closed.length > 0);
        for (const label of closed) {
            label.dataset.mounted = "1";
            label.click();
        }
        if (!closed.length) return;
        requestAnimationFrame(() => setTimeout(() => {
            mountPanels(root); // those inside
            for (const label of closed) label.click();
        }));
    }

    function start(root) {
        mountPanels(root);
        root.addEventListener("click", (event) => {
            if (!event.target.closest(STARTERS)) return;
            clearTimeout(checking);
            checking = null;
            markOutdated(false);
        }, true);
        if (find("#txt2img_prompt")) root.classList.add("ziplora-in-webui");
        showRunning(Boolean(job));
        new IntersectionObserver(tick).observe(root);
        document.addEventListener("visibilitychange", tick);
    }

    const waiting = setInterval(() => {
        const root = find("#ziplora_root");
        if (!root || !find("#ziplora_bar")) return;
        clearInterval(waiting);
        start(root);
    }, 100);
})();
