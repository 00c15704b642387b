-- readable images of the manifest without any label
with runs as (select distinct label_run, dataset from labels)
select runs.label_run, manifest.dataset, manifest.split, manifest.path, manifest.image_id
from runs
join manifest using (dataset)
anti join labels using (label_run, dataset, image_id)
where manifest.status = 'ok'
order by all
