/* Small pictures in the pickers' lists: only those that are seen are asked for, some at a time. */
(function() {
    "use strict";
    if (window.ziploraPictures) return;

    const MOST = 16;
    const ASK_MS = 120;
    const PATIENCE_MS = 5000;
    const FRESH_MS = 60000;
    const known = new Map();
    const wanted = new Set();
    let asked = [];
    let told = "";
    let timer = null;
    let seen = null;

    function find(selector) {
        const app = typeof window.gradioApp === "function" ? window.gradioApp() : document;
        return app.querySelector(selector);
    }

    function put(item, url) {
        if (!url || item.querySelector("img")) return;
        const image = document.createElement("img");
        image.src = url;
        image.alt = "";
        item.appendChild(image);
        item.parentElement.classList.add("ziplora-pictured");
    }

    function askSoon() {
        if (!timer && wanted.size) timer = setTimeout(ask, ASK_MS);
    }

    // One question at a time; an answer that never comes is not waited for.
    function ask() {
        asked = [...wanted].slice(0, MOST);
        timer = setTimeout(giveUp, PATIENCE_MS);
        const button = find("#ziplora_picture");
        if (button) button.click();
    }

    function answered() {
        clearTimeout(timer);
        timer = null;
        for (const name of asked) wanted.delete(name);
        asked = [];
        askSoon();
    }

    // What there is by then counts: an answer may be the same as the one before.
    function giveUp() {
        told = "";
        take();
        answered();
    }

    function take() {
        const answer = find("#ziplora_pictures [data-pictures]");
        if (!answer || answer.dataset.pictures === told) return; // gradio's own marks change too
        told = answer.dataset.pictures;
        for (const [name, url] of Object.entries(JSON.parse(answer.dataset.pictures))) {
            known.set(name, {url, time: Date.now()});
            for (const item of document.querySelectorAll("li[data-picture]")) {
                if (item.dataset.picture === name) put(item, url);
            }
        }
        answered();
    }

    function see(entries) {
        for (const entry of entries) {
            if (!entry.isIntersecting) continue;
            seen.unobserve(entry.target);
            if (entry.target.isConnected) wanted.add(entry.target.dataset.picture);
        }
        askSoon();
    }

    // A row of a list, which gets its picture once somebody sees it.
    function attach(item, name) {
        item.dataset.picture = name;
        const found = known.get(name);
        if (found && Date.now() - found.time < FRESH_MS) {
            requestAnimationFrame(() => item.isConnected && put(item, found.url));
            return;
        }
        if (!seen) seen = new IntersectionObserver(see);
        seen.observe(item);
    }

    window.ziploraPictures = {attach, asked: () => [JSON.stringify(asked)]};

    const waiting = setInterval(() => {
        const place = find("#ziplora_pictures");
        if (!place) return;
        clearInterval(waiting);
        new MutationObserver(take).observe(place, {attributes: true, childList: true, subtree: true});
    }, 100);
})();
