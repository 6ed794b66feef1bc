// Swagger UI over this server's own description, asked for with the key that the page keeps.
import { authorization } from "./api.js";

globalThis.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#description",
  deepLinking: true,
  validatorUrl: null, // or it would ask a service of Swagger's
  requestInterceptor: (request) => {
    if (new URL(request.url, document.baseURI).origin === location.origin) {
      Object.assign(request.headers, authorization());
    }
    return request;
  },
});
